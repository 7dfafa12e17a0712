//! The ranks of one job: their private communicators, and what travels between them.
//!
//! Every wait here tests and sleeps instead of spinning in MPI, because ranks often share cores; it says what it
//! waits for, gives up after a time limit, and can be interrupted.

use crate::abi::Family;
use crate::error::{Error, Result};
use crate::host;
use crate::libmpi;
use crate::mpi::{Comm, Mpi};
use crate::profile::Profile;
use crate::progress;
use crate::store::Store;
use crate::tree::{self, Tree};
use once_cell::sync::OnceCell;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

mod delivery;
mod ending;
mod wait;

pub use delivery::Section;
pub use ending::at_exit;
pub use wait::Interrupt;
use wait::Wait;

/// One MPI call carries at most this much: `count` is an `int`, and a wait between pieces can be interrupted.
const PIECE_BYTES: usize = 64 << 20;

const EVERY_RANK: &str = "every rank of MPI_COMM_WORLD to start mpiimport. If other programs run in this world, start \
                          ours with MPIIMPORT_LOCAL=1";

/// The name in the node store of what is being broadcast.
const SHARED: &str = "shared";

/// What `connect` is asked for; the policy behind each value is Python's.
pub struct Options {
    /// Candidates for libmpi, see [`libmpi::open`].
    pub libraries: Vec<String>,
    /// Whether libmpi's symbols become global, for old Open MPI plug-ins that are not linked to it.
    pub global: bool,
    /// The family of libraries that the launcher can start, where known.
    pub launcher: Option<Family>,
    /// 0 single, 1 funneled, 2 serialized, 3 multiple.
    pub thread_level: usize,
    /// How long a wait may last.
    pub timeout: Duration,
}

/// This rank's place in the job.
pub struct World {
    mpi: Mpi,
    /// The MPI library in use.
    pub library: PathBuf,
    comm: Comm,
    node: Comm,
    /// The first ranks of all hosts; only they have it.
    leaders: Option<Comm>,
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
    /// Where the root keeps what the ranks asked.
    profile: Mutex<Option<Profile>>,
}

static WORLD: OnceCell<World> = OnceCell::new();

/// The world that this process has joined, unless it is a forked child: MPI is not for those.
pub fn joined() -> Option<&'static World> {
    WORLD.get().filter(|world| world.pid == std::process::id())
}

/// Opens the MPI library, or takes the one in use.
///
/// # Errors
/// No library works, with every attempt, or this launcher cannot start programs that use it.
pub fn open_library(options: &Options) -> Result<Option<libmpi::Opened>> {
    if WORLD.get().is_some() {
        return Ok(None);
    }
    libmpi::open(&options.libraries, options.launcher, options.global).map(Some)
}

/// Joins the job: initialises MPI if nobody has, and makes our own communicators. Collective.
///
/// # Errors
/// An MPI call that failed, or the time limit.
pub fn connect(opened: Option<libmpi::Opened>, options: &Options, interrupt: &mut Interrupt) -> Result<&'static World> {
    let Some(libmpi::Opened { mpi, path, .. }) = opened else {
        return joined().ok_or_else(|| Error::new("a forked child cannot join the other ranks"));
    };
    if mpi.is_finalized()? {
        return Err(Error::new("MPI has been finalised already"));
    }
    let own = !mpi.is_initialized()?;
    if own {
        until_started(options.timeout, || mpi.init_thread(options.thread_level))?;
    }
    let (rank, size) = (mpi.rank(mpi.comm_world())?, mpi.size(mpi.comm_world())?);
    let mut wait = Wait {
        mpi: &mpi,
        rank,
        timeout: options.timeout,
        interrupt,
    };
    // The handle's slot belongs to MPI until the request is complete, and for ever if it never is.
    let slot = Box::into_raw(Box::new(0));
    // SAFETY: the slot is never freed.
    let request = unsafe { mpi.comm_idup(mpi.comm_world(), slot)? };
    wait.until_complete(request, EVERY_RANK)?;
    // SAFETY: the request is complete, so MPI has written the slot and no longer uses it.
    let comm = mpi.comm(unsafe { slot.read() });
    mpi.set_errors_return(comm)?;
    let mut node = mpi.comm_split_shared(comm, rank)?;
    let (local_rank, local_size) = (mpi.rank(node)?, mpi.size(node)?);
    let leaders = if local_size == size {
        // A communicator takes up to 2 MB of memory that is not shared: a single host needs no other.
        mpi.comm_free(node)?;
        node = comm;
        (rank == 0).then(|| mpi.comm_self())
    } else {
        mpi.set_errors_return(node)?;
        let leaders = mpi.comm_split(comm, local_rank == 0, rank)?;
        if let Some(leaders) = leaders {
            mpi.set_errors_return(leaders)?;
        }
        leaders
    };
    let world = World {
        library: path,
        comm,
        node,
        leaders,
        rank,
        size,
        local_rank,
        local_size,
        thread_level: mpi.query_thread()?,
        own,
        pid: std::process::id(),
        timeout: options.timeout,
        left: AtomicBool::new(false),
        abort_status: AtomicI32::new(0),
        store: Mutex::new(None),
        profile: Mutex::new(None),
        mpi,
    };
    world.mpi.call_in_finalize(ending::in_finalize)?;
    Ok(WORLD.get_or_init(|| world))
}

/// Calls MPI_Init, which waits for every rank as long as it takes: ends this process after the time limit.
fn until_started(timeout: Duration, init: impl FnOnce() -> Result<()>) -> Result<()> {
    let (started, waiting) = mpsc::channel::<()>();
    let notice = wait::NOTICE.min(timeout / 2);
    let watchdog = std::thread::Builder::new().spawn(move || {
        let has_waited = |time| waiting.recv_timeout(time) == Err(RecvTimeoutError::Timeout);
        let say = |waited: &str, time: Duration| {
            eprintln!(
                "mpiimport: a rank on {} {waited} {} s for {EVERY_RANK}.",
                host::name(),
                time.as_secs()
            );
        };
        if !has_waited(notice) {
            return;
        }
        let first = host::first("notice");
        if first.is_some() {
            say("has waited", notice);
        }
        if !has_waited(timeout - notice) {
            return;
        }
        if host::is_first_to_end() {
            say("waited", timeout);
        }
        std::thread::sleep(ending::SETTLE);
        // SAFETY: ends the process at once; the launcher ends the others.
        unsafe { libc::_exit(1) };
    });
    let result = init();
    drop(started);
    if let Ok(watchdog) = watchdog {
        let _ = watchdog.join(); // it has nothing to return
    }
    result
}

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

    /// Gives every rank the root's bytes. Collective.
    ///
    /// # Errors
    /// As all waits: MPI failed, the time limit, or an interrupt. The job cannot go on after it.
    pub fn broadcast(&self, data: Option<&[u8]>, what: &str, interrupt: &mut Interrupt) -> Result<Vec<u8>> {
        let size_bytes = self.broadcast_size(data.map(<[u8]>::len), what, interrupt)?;
        let mut buffer = vec![0; size_bytes];
        if let Some(data) = data.filter(|_| self.rank == 0) {
            buffer.copy_from_slice(data);
        }
        self.broadcast_pieces(self.comm, buffer.leak(), what, interrupt)
            // SAFETY: the slice is what was leaked above, and `vec!` allocates no more than that; MPI is done with it.
            .map(|buffer| unsafe { Vec::from_raw_parts(buffer.as_mut_ptr(), buffer.len(), buffer.len()) })
    }

    /// Gives every host the root's parts, joined, in memory that its ranks share; without a node store, in each
    /// rank's own.
    /// The memory is never given back: what it holds is used until the process ends. Collective.
    ///
    /// # Errors
    /// As all waits. The job cannot go on after it.
    pub fn broadcast_shared(
        &self,
        parts: Option<&[&[u8]]>,
        what: &str,
        interrupt: &mut Interrupt,
    ) -> Result<&'static [u8]> {
        let parts = parts.filter(|_| self.rank == 0);
        let size_bytes = parts.map(|parts| parts.iter().map(|part| part.len()).sum());
        let size_bytes = self.broadcast_size(size_bytes, what, interrupt)?;
        let mut mapped = None;
        if let Some(leaders) = self.leaders {
            if self.local_size > 1 {
                mapped = self
                    .with_store(|store| store.map_new(SHARED, size_bytes))
                    .transpose()
                    .unwrap_or_else(|cause| {
                        log::debug!("{cause}");
                        None
                    });
            }
            let is_mapped = mapped.is_some();
            let buffer = mapped.unwrap_or_else(|| vec![0; size_bytes].leak());
            let mut rest = &mut *buffer;
            for part in parts.unwrap_or_default() {
                let (place, after) = rest.split_at_mut(part.len());
                place.copy_from_slice(part);
                rest = after;
            }
            // SAFETY: the buffer lives for ever.
            unsafe { self.broadcast_to_hosts(leaders, buffer, what, interrupt)? };
            let announced = vec![u8::from(is_mapped)].leak();
            self.broadcast_pieces(self.node, announced, what, interrupt)?;
            if !is_mapped && self.local_size > 1 {
                return Ok(self.broadcast_pieces(self.node, buffer, what, interrupt)?);
            }
            if is_mapped {
                // Every rank has it mapped after this: without a name, it is gone with the last of them.
                self.gather_from(self.node, self.local_size, &[0], what, interrupt)?;
                self.with_store(|store| store.unlink(SHARED)).transpose()?;
            }
            return Ok(buffer);
        }
        let announced = self.broadcast_pieces(self.node, vec![0_u8].leak(), what, interrupt)?;
        if announced[0] == 0 {
            return Ok(self.broadcast_pieces(self.node, vec![0; size_bytes].leak(), what, interrupt)?);
        }
        let shared = self
            .with_store(|store| store.map(SHARED, size_bytes))
            .ok_or_else(|| Error::new("the first rank of this host has a node store, and this rank has not"))??;
        self.gather_from(self.node, self.local_size, &[0], what, interrupt)?;
        Ok(shared)
    }

    /// Collects equally many bytes of every rank on the root, in the order of ranks; others get nothing. Collective.
    ///
    /// # Errors
    /// As all waits. The job cannot go on after it.
    pub fn gather(&self, sent: &[u8], what: &str, interrupt: &mut Interrupt) -> Result<Vec<u8>> {
        self.gather_from(self.comm, self.size, sent, what, interrupt)
    }

    fn gather_from(
        &self,
        comm: Comm,
        size: usize,
        sent: &[u8],
        what: &str,
        interrupt: &mut Interrupt,
    ) -> Result<Vec<u8>> {
        // An operation that is not waited for to its end keeps its buffers: they are leaked on an error.
        let sent = sent.to_vec();
        let mut received = vec![0; sent.len() * size];
        // SAFETY: both buffers live until the request is complete, or for ever.
        let request = unsafe {
            self.mpi
                .igather(sent.as_ptr(), sent.len(), received.as_mut_ptr(), comm)?
        };
        match self.wait(interrupt).until_complete(request, what) {
            Ok(()) => Ok(received),
            Err(cause) => {
                std::mem::forget((sent, received));
                Err(cause)
            }
        }
    }

    fn broadcast_size(&self, size_bytes: Option<usize>, what: &str, interrupt: &mut Interrupt) -> Result<usize> {
        let announced = (size_bytes.unwrap_or(0) as u64).to_le_bytes().to_vec().leak();
        let announced = self.broadcast_pieces(self.comm, announced, what, interrupt)?;
        let mut size = [0; 8];
        size.copy_from_slice(announced);
        usize::try_from(u64::from_le_bytes(size))
            .map_err(|_| Error::new("the root announced more bytes than this machine can address"))
    }

    /// Sends the bytes of `comm`'s rank 0 to the others' buffers of the same size, in pieces.
    fn broadcast_pieces(
        &self,
        comm: Comm,
        buffer: &'static mut [u8],
        what: &str,
        interrupt: &mut Interrupt,
    ) -> Result<&'static mut [u8]> {
        for piece in buffer.chunks_mut(PIECE_BYTES) {
            // SAFETY: the buffer lives for ever, and nobody else has it until it is returned.
            let request = unsafe { self.mpi.ibcast(piece.as_mut_ptr(), piece.len(), comm)? };
            self.wait(interrupt).until_complete(request, what)?;
        }
        Ok(buffer)
    }

    /// Sends the root's bytes to the other node leaders' buffers of the same size.
    ///
    /// # Safety
    /// After an error the buffer must stay valid for ever: MPI may still use it.
    unsafe fn broadcast_to_hosts(
        &self,
        leaders: Comm,
        buffer: &mut [u8],
        what: &str,
        interrupt: &mut Interrupt,
    ) -> Result<()> {
        let mut tree = Tree::new(&self.mpi, leaders)?;
        for segment in buffer.chunks_mut(tree::SEGMENT_BYTES) {
            self.wait(interrupt).until(what, || tree.has_room(&mut drop))?;
            // SAFETY: nobody else uses the buffer until all is over, and the caller vouches for it after an error.
            unsafe { tree.push(segment.as_mut_ptr(), segment.len(), ())? };
            progress::advance(segment.len() as u64);
        }
        self.wait(interrupt).until(what, || tree.is_over(&mut drop))
    }

    /// Makes the node store on each host and opens it on each rank; a host where that fails has none. Collective.
    ///
    /// # Errors
    /// As all waits. That a store cannot be made is no error: its reason is returned.
    pub fn open_store(&self, roots: &[PathBuf], interrupt: &mut Interrupt) -> Result<Option<String>> {
        const PATH_BYTES: usize = 4096;
        let what = "the first rank of this host to make the node store";
        let mut problem = None;
        let mut opened = None;
        let path = vec![0_u8; PATH_BYTES].leak();
        if self.local_rank == 0 {
            match Store::create(roots) {
                Ok(store) => {
                    let bytes = store.path().as_os_str().as_bytes();
                    if bytes.len() < PATH_BYTES {
                        path[..bytes.len()].copy_from_slice(bytes);
                    }
                    opened = Some(store);
                }
                Err(cause) => problem = Some(cause.to_string()),
            }
        }
        let path = self.broadcast_pieces(self.node, path, what, interrupt)?;
        let length = path.iter().position(|&byte| byte == 0).unwrap_or(PATH_BYTES);
        if opened.is_none() && length > 0 {
            match Store::open(Path::new(OsStr::from_bytes(&path[..length]))) {
                Ok(store) => opened = Some(store),
                Err(cause) => problem = Some(cause.to_string()),
            }
        }
        // A store serves all ranks of a host or none.
        let ready = self.gather_from(
            self.node,
            self.local_size,
            &[u8::from(opened.is_some())],
            what,
            interrupt,
        )?;
        let all_ready = vec![u8::from(self.local_rank == 0 && ready.iter().all(|&one| one == 1))].leak();
        if self.broadcast_pieces(self.node, all_ready, what, interrupt)?[0] == 0
            && let Some(store) = opened.take()
        {
            store.leave(false)?;
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

    fn wait<'a>(&'a self, interrupt: &'a mut Interrupt<'a>) -> Wait<'a> {
        Wait {
            mpi: &self.mpi,
            rank: self.rank,
            timeout: self.timeout,
            interrupt,
        }
    }
}
