//! The ranks of one job: their private communicators, what travels between them, and how MPI ends.
//!
//! Every wait here tests and sleeps instead of spinning in MPI, because ranks often share cores; it says what it
//! waits for, gives up after a time limit, and can be interrupted.

use crate::abi::Family;
use crate::error::{Error, Result};
use crate::libmpi;
use crate::mpi::{Comm, Mpi, Request};
use crate::store::Store;
use once_cell::sync::OnceCell;
use std::ffi::{OsStr, c_int, c_void};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A waiting rank sleeps this long between two tests: four ranks that spin on two cores double the root's time.
const PAUSE: Duration = Duration::from_micros(100);
/// Tests without a pause, for what is there already.
const EAGER_TESTS: u32 = 50;
/// After this long a wait is worth a line.
const NOTICE: Duration = Duration::from_secs(30);
/// One MPI call carries at most this much: `count` is an `int`, and a wait between pieces can be interrupted.
const PIECE_BYTES: usize = 64 << 20;

/// What `connect` is asked for; the policy behind each value is Python's.
pub struct Options {
    /// Candidates for libmpi, see [`libmpi::open`].
    pub libraries: Vec<String>,
    /// Whether libmpi's symbols become global, for old Open MPI plug-ins that are not linked to it.
    pub global: bool,
    /// The family of libraries that the launcher can start, where known.
    pub launcher: Option<Family>,
    /// The number of ranks that the launcher says it started, where known.
    pub launcher_size: Option<usize>,
    /// 0 single, 1 funneled, 2 serialized, 3 multiple.
    pub thread_level: usize,
    /// How long a wait may last.
    pub timeout: Duration,
}

/// Called now and then during a wait; an error ends the wait.
pub type Interrupt<'a> = dyn FnMut() -> Result<()> + 'a;

/// This rank's place in the job.
pub struct World {
    mpi: Mpi,
    /// The MPI library in use.
    pub library: PathBuf,
    comm: Comm,
    node: Comm,
    /// The rank in `MPI_COMM_WORLD`.
    pub rank: usize,
    /// The number of ranks in `MPI_COMM_WORLD`.
    pub size: usize,
    /// The rank among those of this host.
    pub local_rank: usize,
    /// The number of ranks on this host.
    pub local_size: usize,
    /// The thread level that MPI provides, as in [`Options`].
    pub thread_level: usize,
    /// We initialised MPI, so we finalise it (MPI 3.0, 8.7: the same thread must).
    own: bool,
    pid: u32,
    timeout: Duration,
    /// Set when MPI_Finalize begins, whoever calls it.
    left: AtomicBool,
    /// Unless 0, the job is aborted with this status instead of finalised.
    abort_status: AtomicI32,
    store: Mutex<Option<Store>>,
}

static WORLD: OnceCell<World> = OnceCell::new();

/// The world that this process has joined, unless it is a forked child: MPI is not for those.
pub fn joined() -> Option<&'static World> {
    WORLD.get().filter(|world| world.pid == std::process::id())
}

/// Joins the job: opens libmpi, initialises MPI if nobody has, and makes our own communicators. Collective.
///
/// # Errors
/// No usable library, an MPI call that failed, a launcher that does not fit the library, or the time limit.
pub fn connect(options: &Options, interrupt: &mut Interrupt) -> Result<&'static World> {
    if let Some(world) = WORLD.get() {
        return Ok(world);
    }
    let libmpi::Opened { mpi, path } = libmpi::open(&options.libraries, options.launcher, options.global)?;
    if mpi.is_finalized()? {
        return Err(Error::new("MPI has been finalised already"));
    }
    let own = !mpi.is_initialized()?;
    if own {
        mpi.init_thread(options.thread_level)?;
    }
    let (rank, size) = (mpi.rank(mpi.comm_world())?, mpi.size(mpi.comm_world())?);
    if let Some(expected) = options.launcher_size.filter(|&expected| expected > 1 && size == 1) {
        return Err(Error::new(format!(
            "the launcher started {expected} ranks, but `{}` sees only itself: it does not belong to this launcher. \
             Set MPIIMPORT_LIBMPI to the libmpi of your mpiexec.",
            path.display()
        )));
    }
    let mut wait = Wait {
        mpi: &mpi,
        rank,
        timeout: options.timeout,
        interrupt,
    };
    // The handle's slot belongs to MPI until the request is complete, and for ever if it never is.
    let slot: &'static mut usize = Box::leak(Box::new(0));
    let slot_address: *const usize = slot;
    let request = mpi.comm_idup(mpi.comm_world(), slot)?;
    wait.until_complete(
        request,
        "every rank of MPI_COMM_WORLD to start mpiimport. If other programs run in this world, start ours with \
         MPIIMPORT_LOCAL=1",
    )?;
    // SAFETY: the request is complete, so MPI has written the slot and no longer uses it.
    let comm = mpi.comm(unsafe { slot_address.read_volatile() });
    mpi.set_errors_return(comm)?;
    let node = mpi.comm_split_shared(comm, rank)?;
    mpi.set_errors_return(node)?;
    let world = World {
        library: path,
        comm,
        node,
        rank,
        size,
        local_rank: mpi.rank(node)?,
        local_size: mpi.size(node)?,
        thread_level: mpi.query_thread()?,
        own,
        pid: std::process::id(),
        timeout: options.timeout,
        left: AtomicBool::new(false),
        abort_status: AtomicI32::new(0),
        store: Mutex::new(None),
        mpi,
    };
    world.mpi.call_in_finalize(in_finalize)?;
    Ok(WORLD.get_or_init(|| world))
}

/// What travels ahead of a broadcast: whether it is an error, and its size.
const HEADER_BYTES: usize = 16;

impl World {
    /// What `MPI_Get_library_version` says.
    pub fn library_version(&self) -> String {
        self.mpi.library_version()
    }

    /// The name of the library's binary interface.
    pub fn abi_name(&self) -> &'static str {
        self.mpi.abi().family.name()
    }

    /// Whether MPI may still be called: it may not after MPI_Finalize has begun, nor in a forked child.
    pub fn is_active(&self) -> bool {
        self.pid == std::process::id() && !self.left.load(Ordering::Acquire)
    }

    /// Tells every rank the size of what the root will send, and whether it is an error's text. Collective.
    ///
    /// # Errors
    /// As all waits: MPI failed, the time limit, or an interrupt.
    pub fn broadcast_header(
        &self,
        announced: Option<(bool, usize)>,
        what: &str,
        interrupt: &mut Interrupt,
    ) -> Result<(bool, usize)> {
        let mut header = [0_u8; HEADER_BYTES];
        if let Some((failed, size_bytes)) = announced {
            header[0] = u8::from(failed);
            header[8..].copy_from_slice(&(size_bytes as u64).to_le_bytes());
        }
        self.broadcast_into(&mut header, what, interrupt)?;
        let mut size = [0; 8];
        size.copy_from_slice(&header[8..]);
        let size = usize::try_from(u64::from_le_bytes(size))
            .map_err(|_| Error::new("the root announced more bytes than this machine can address"))?;
        Ok((header[0] != 0, size))
    }

    /// Sends the root's bytes to every rank's buffer of the same size, in pieces. Collective.
    ///
    /// # Errors
    /// As all waits. The process must not use the buffer again after an error, and ends.
    pub fn broadcast_into(&self, buffer: &mut [u8], what: &str, interrupt: &mut Interrupt) -> Result<()> {
        for piece in buffer.chunks_mut(PIECE_BYTES) {
            // SAFETY: the piece is borrowed until the request is complete, or the job is aborted.
            let request = unsafe { self.mpi.ibcast(piece.as_mut_ptr(), piece.len(), self.comm)? };
            self.wait(interrupt).until_complete(request, what)?;
        }
        Ok(())
    }

    /// Collects equally many bytes of every rank on the root, in the order of ranks; others get nothing. Collective.
    ///
    /// # Errors
    /// As all waits.
    pub fn gather(&self, sent: &[u8], what: &str, interrupt: &mut Interrupt) -> Result<Vec<u8>> {
        let mut received = vec![0; if self.rank == 0 { sent.len() * self.size } else { 0 }];
        // SAFETY: both buffers live until the request is complete, or the job is aborted.
        let request = unsafe {
            self.mpi
                .igather(sent.as_ptr(), sent.len(), received.as_mut_ptr(), self.comm)?
        };
        self.wait(interrupt).until_complete(request, what)?;
        Ok(received)
    }

    /// Makes the node store on each host and opens it on each rank; a host where that fails has none. Collective.
    ///
    /// # Errors
    /// As all waits. That a store cannot be made is no error: its reason is returned.
    pub fn open_store(&self, roots: &[PathBuf], interrupt: &mut Interrupt) -> Result<Option<String>> {
        const PATH_BYTES: usize = 4096;
        let mut problem = None;
        let mut path = [0_u8; PATH_BYTES];
        let mut opened = None;
        if self.local_rank == 0 {
            match Store::create(roots) {
                Ok(store) => {
                    let bytes = store.path().as_os_str().as_encoded_bytes();
                    if bytes.len() < PATH_BYTES {
                        path[..bytes.len()].copy_from_slice(bytes);
                    }
                    opened = Some(store);
                }
                Err(cause) => problem = Some(cause.to_string()),
            }
        }
        // SAFETY: the buffer lives until the request is complete, or the job is aborted.
        let request = unsafe { self.mpi.ibcast(path.as_mut_ptr(), PATH_BYTES, self.node)? };
        self.wait(interrupt)
            .until_complete(request, "the first rank of this host to make the node store")?;
        let length = path.iter().position(|&byte| byte == 0).unwrap_or(PATH_BYTES);
        if opened.is_none() && length > 0 {
            let path = PathBuf::from(OsStr::from_bytes(&path[..length]));
            match Store::open(&path) {
                Ok(store) => opened = Some(store),
                Err(cause) => problem = Some(cause.to_string()),
            }
        }
        *self.store.lock().unwrap_or_else(PoisonError::into_inner) = opened;
        Ok(problem)
    }

    /// Lets `use_store` use the node store, if this process has one.
    pub fn with_store<T>(&self, use_store: impl FnOnce(&mut Store) -> T) -> Option<T> {
        if self.pid != std::process::id() {
            return None;
        }
        self.store
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_mut()
            .map(use_store)
    }

    /// Has the job aborted with `status` when this process ends, and after `grace` even if it does not.
    pub fn abort_at_exit(&'static self, status: c_int, grace: Duration) {
        if !self.is_active() || self.abort_status.swap(status, Ordering::AcqRel) != 0 {
            return;
        }
        // Threads of the program may keep the interpreter from ending.
        let deadline = std::thread::Builder::new().spawn(move || {
            std::thread::sleep(grace);
            if self.thread_level == 3 && self.is_active() {
                let _ = self.mpi.abort(status);
            }
            // SAFETY: ends the process at once; the launcher ends the others.
            unsafe { libc::_exit(status) };
        });
        if deadline.is_err() {
            self.abort_now(status);
        }
    }

    /// Ends every rank of the job.
    pub fn abort_now(&self, status: c_int) {
        if self.is_active()
            && let Err(cause) = self.mpi.abort(status)
        {
            eprintln!("mpiimport: {cause}");
        }
    }

    fn wait<'a>(&'a self, interrupt: &'a mut Interrupt<'a>) -> Wait<'a> {
        Wait {
            mpi: &self.mpi,
            rank: self.rank,
            timeout: self.timeout,
            interrupt,
        }
    }
}

/// How a rank waits for an operation of MPI.
struct Wait<'a> {
    mpi: &'a Mpi,
    rank: usize,
    timeout: Duration,
    interrupt: &'a mut Interrupt<'a>,
}

impl Wait<'_> {
    fn until_complete(&mut self, mut request: Request, what: &str) -> Result<()> {
        let start = Instant::now();
        let mut tests = 0_u32;
        let mut noticed: Option<Option<UnixListener>> = None;
        while !self.mpi.test(&mut request)? {
            tests = tests.wrapping_add(1);
            if tests < EAGER_TESTS {
                std::thread::yield_now();
                continue;
            }
            std::thread::sleep(PAUSE);
            if !tests.is_multiple_of(256) {
                continue;
            }
            (self.interrupt)()?;
            let waited = start.elapsed();
            if waited > self.timeout {
                return Err(Error::new(format!(
                    "rank {} on {} waited {} s for {what}",
                    self.rank,
                    hostname(),
                    waited.as_secs()
                )));
            }
            if waited > NOTICE && noticed.is_none() {
                let first = first_on_host();
                if first.is_some() {
                    eprintln!(
                        "mpiimport: rank {} on {} has waited {} s for {what}.",
                        self.rank,
                        hostname(),
                        waited.as_secs()
                    );
                }
                noticed = Some(first);
            }
        }
        Ok(())
    }
}

/// This host's name, for messages.
pub fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Held by the first of the ranks that one launcher started on this host; without a file, and without MPI.
fn first_on_host() -> Option<UnixListener> {
    let launcher = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    let name = format!("mpiimport-{}-{launcher}", rustix::process::getuid().as_raw());
    let address = SocketAddr::from_abstract_name(name).ok()?;
    UnixListener::bind_addr(&address).ok()
}

/// Called by MPI_Finalize, whoever calls that: the last moment at which our communicators can be freed.
extern "C" fn in_finalize(_comm: usize, _keyval: c_int, _value: *mut c_void, _extra: *mut c_void) -> c_int {
    let Some(world) = joined() else { return 0 };
    if world.left.swap(true, Ordering::AcqRel) {
        return 0;
    }
    leave_store(world);
    for comm in [world.node, world.comm] {
        if let Err(cause) = world.mpi.comm_free(comm) {
            eprintln!("mpiimport: {cause}");
        }
    }
    0
}

/// Called by the interpreter after everything of Python's has ended: aborts or finalises MPI if that is ours to do.
pub extern "C" fn at_exit() {
    let Some(world) = joined() else { return };
    let active = world.mpi.is_initialized().unwrap_or(false) && !world.mpi.is_finalized().unwrap_or(true);
    let status = world.abort_status.load(Ordering::Acquire);
    let ended = match (active, status) {
        (false, _) => Ok(()),
        (true, 0) if world.own => world.mpi.finalize(),
        (true, 0) => Ok(()),
        (true, status) => {
            leave_store(world);
            world.mpi.abort(status)
        }
    };
    if let Err(cause) = ended {
        eprintln!("mpiimport: {cause}");
    }
    leave_store(world);
}

fn leave_store(world: &World) {
    let store = world.store.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(Err(cause)) = store.map(Store::leave) {
        eprintln!("mpiimport: {cause}");
    }
}
