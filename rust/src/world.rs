//! The ranks of one job: their private communicators, what travels between them, and how MPI ends.
//!
//! Every wait here tests and sleeps instead of spinning in MPI, because ranks often share cores; it says what it
//! waits for, gives up after a time limit, and can be interrupted.

use crate::abi::Family;
use crate::error::{Error, Result};
use crate::libmpi;
use crate::modules;
use crate::mpi::{Comm, Mpi, Request};
use crate::profile::{self, Profile, Questions};
use crate::progress;
use crate::report;
use crate::state::State;
use crate::store::{Incoming, Store};
use crate::tree::{self, Tree};
use once_cell::sync::OnceCell;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use std::ffi::{OsStr, c_int, c_void};
use std::fs::File;
use std::hash::Hasher;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A waiting rank sleeps this long between two tests: four ranks that spin on two cores double the root's time.
const PAUSE: Duration = Duration::from_micros(100);
/// Tests without a pause, for what is there already.
const EAGER_TESTS: u32 = 50;
/// After this long, or half the time limit if that is less, a wait is worth a line.
const NOTICE: Duration = Duration::from_secs(30);
/// Ranks 2 and 3 wait so much longer than 0 and 1, 4 to 7 than those, and so on: who says why the job ends has ended it
/// by then, and a thousand hosts do not all say it.
const TURN: Duration = Duration::from_secs(1);
/// Hydra drops what it has not read of a rank's output when that rank calls MPI_Abort: tracebacks were cut short in
/// one of 40 runs without a pause.
const SETTLE: Duration = Duration::from_millis(100);
/// One MPI call carries at most this much: `count` is an `int`, and a wait between pieces can be interrupted.
const PIECE_BYTES: usize = 64 << 20;
/// So many copies are begun before any has its name: each is an open file.
const FILES_AT_ONCE: usize = 64;

/// So much of what a rank asked reaches the profile: ten thousand questions.
const NOTES_BYTES: usize = 1 << 20;

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

/// Called now and then during a wait; an error ends the wait.
pub type Interrupt<'a> = dyn FnMut() -> Result<()> + 'a;

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
    world.mpi.call_in_finalize(in_finalize)?;
    Ok(WORLD.get_or_init(|| world))
}

/// Calls MPI_Init, which waits for every rank as long as it takes: ends this process after the time limit.
fn until_started(timeout: Duration, init: impl FnOnce() -> Result<()>) -> Result<()> {
    let (started, waiting) = mpsc::channel::<()>();
    let notice = NOTICE.min(timeout / 2);
    let watchdog = std::thread::Builder::new().spawn(move || {
        let has_waited = |time| waiting.recv_timeout(time) == Err(RecvTimeoutError::Timeout);
        let say = |waited: &str, time: Duration| {
            eprintln!(
                "mpiimport: a rank on {} {waited} {} s for {EVERY_RANK}.",
                hostname(),
                time.as_secs()
            );
        };
        if !has_waited(notice) {
            return;
        }
        let first = first_on_host("notice");
        if first.is_some() {
            say("has waited", notice);
        }
        if !has_waited(timeout - notice) {
            return;
        }
        if is_first_on_host() {
            say("waited", timeout);
        }
        std::thread::sleep(SETTLE);
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

    /// Copies files of the root to the node store of each host, and says which of them this host has. Collective.
    ///
    /// Each byte crosses to a host once, from the root's file into its copy. A file that the root cannot read to
    /// its end is on no host; one that a host has no room for is not on that host. `links` are made beside the copies;
    /// a host that has no room for them has no copies: they may open what is linked when they run.
    ///
    /// # Errors
    /// As all waits. The job cannot go on after it.
    pub fn deliver_files(
        &self,
        paths: &[PathBuf],
        links: &[PathBuf],
        bundle: Option<(&File, &[Section])>,
        what: &str,
        interrupt: &mut Interrupt,
    ) -> Result<Vec<bool>> {
        let mut present = vec![0_u8; paths.len()];
        if let Some(leaders) = self.leaders {
            let linked = self.with_store(|store| links.iter().try_for_each(|original| store.link(original)));
            let linked = linked.is_none_or(|linked| linked.map_err(|cause| log::debug!("{cause}")).is_ok());
            let bundle = match bundle {
                Some((file, sections)) => {
                    let file = file
                        .try_clone()
                        .map_err(|cause| Error::new(format!("cannot read the bundle: {cause}")))?;
                    Some((Rc::new(file), sections))
                }
                None => None,
            };
            let mut spare = Vec::new();
            for (at, paths) in paths.chunks(FILES_AT_ONCE).enumerate() {
                let first = at * FILES_AT_ONCE;
                let sources: Vec<Source> = match &bundle {
                    _ if self.rank != 0 => Vec::new(),
                    Some((file, sections)) => sections[first..first + paths.len()]
                        .iter()
                        .map(|&section| Source::section(file, section))
                        .collect(),
                    None => Source::files(paths),
                };
                let arrived = self.deliver_some(leaders, paths, &sources, &mut spare, what, interrupt)?;
                for (present, arrived) in present[first..].iter_mut().zip(arrived) {
                    *present = u8::from(arrived && linked);
                }
            }
        }
        let present = self.broadcast_pieces(self.node, present.leak(), what, interrupt)?;
        Ok(present.iter().map(|&one| one == 1).collect())
    }

    /// Copies some files between the first ranks of the hosts; only the root has `sources`.
    fn deliver_some(
        &self,
        leaders: Comm,
        paths: &[PathBuf],
        sources: &[Source],
        spare: &mut Vec<Box<[u8]>>,
        what: &str,
        interrupt: &mut Interrupt,
    ) -> Result<Vec<bool>> {
        let mut announced = vec![0; paths.len() * 8];
        for (place, source) in announced.chunks_exact_mut(8).zip(sources) {
            place.copy_from_slice(&source.size_bytes.unwrap_or(u64::MAX).to_le_bytes());
        }
        let announced = self.broadcast_pieces(leaders, announced.leak(), what, interrupt)?;
        let sizes = announced
            .chunks_exact(8)
            .map(|bytes| bytes.iter().rfold(0, |size, &byte| size << 8 | u64::from(byte)));
        let mut copies = Copies {
            incoming: Vec::with_capacity(paths.len()),
            spare,
        };
        let mut verdicts = vec![0_u8; paths.len()];
        let mut tree = Tree::new(&self.mpi, leaders)?;
        for (at, (path, size_bytes)) in paths.iter().zip(sizes).enumerate() {
            if size_bytes == u64::MAX {
                copies.incoming.push(None); // the root has not got it
                continue;
            }
            copies.incoming.push(self.begin_copy(path, size_bytes));
            let mut reader = sources.get(at).map(Source::reader);
            for offset in (0..size_bytes).step_by(tree::SEGMENT_BYTES) {
                self.wait(interrupt)
                    .until(what, || tree.has_room(&mut |part| copies.write(part)))?;
                let mut part = copies.part(offset, size_bytes);
                let bytes = &mut part.bytes[..part.size_bytes];
                if let Some(reader) = &mut reader {
                    reader.read(bytes, offset);
                }
                let (start, length) = (bytes.as_mut_ptr(), bytes.len());
                // SAFETY: the bytes are the part's, wherever that is moved to.
                unsafe { tree.push(start, length, part)? };
                progress::advance(length as u64);
            }
            // Whether the copy is whole, the root knows.
            verdicts[at] = u8::from(reader.is_some_and(Reader::was_whole));
        }
        self.wait(interrupt)
            .until(what, || tree.is_over(&mut |part| copies.write(part)))?;
        let verdicts = self.broadcast_pieces(leaders, verdicts.leak(), what, interrupt)?;
        let finish = |(incoming, verdict): (Option<Incoming>, &u8)| match incoming {
            Some(incoming) if *verdict == 1 => incoming.finish().map(|()| true),
            _ => Ok(false),
        };
        copies.incoming.into_iter().zip(verdicts.iter()).map(finish).collect()
    }

    /// Begins the copy of a file in the node store, if there is one and it has room.
    fn begin_copy(&self, path: &Path, size_bytes: u64) -> Option<Incoming> {
        let begun = self.with_store(|store| store.receive(path, size_bytes))?;
        begun.map_err(|cause| log::debug!("{cause}")).ok()
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

    /// From now on, every rank takes note of what it asks, and the root keeps that at the end. Collective.
    pub fn take_notes(&self, profile: Option<Profile>) {
        *self.profile.lock().unwrap_or_else(PoisonError::into_inner) = profile;
        profile::take_notes();
    }

    /// Gathers on the root what the ranks noted. Collective, when MPI ends.
    fn gather_notes(&self) -> Result<()> {
        let Some(mut noted) = profile::noted() else {
            return Ok(());
        };
        let interrupt: &mut Interrupt = &mut || Ok(());
        self.gather_into(self.node, self.local_size, &mut noted, interrupt)?;
        if let Some(leaders) = self.leaders {
            self.gather_into(leaders, self.mpi.size(leaders)?, &mut noted, interrupt)?;
        }
        if let Some(profile) = self.profile.lock().unwrap_or_else(PoisonError::into_inner).take() {
            profile.keep(noted);
        }
        Ok(())
    }

    /// Adds to rank 0's questions those of the other ranks. Ranks that asked the same as rank 0 send nothing.
    fn gather_into(&self, comm: Comm, size: usize, noted: &mut Questions, interrupt: &mut Interrupt) -> Result<()> {
        if size == 1 {
            return Ok(());
        }
        let what = "the other ranks to finish";
        let lines = profile::joined(noted);
        let hash = hash_of(&lines).to_le_bytes();
        // MPI_Finalize waits for all ranks, however long they take, and so do the gather, on rank 0, and the broadcast,
        // on the others. MPI has the buffers until then.
        let (arrived, mine, first) = (vec![0_u8; size].leak(), vec![1_u8].leak(), hash.to_vec().leak());
        // SAFETY: the buffers live for ever.
        let arrival = unsafe { self.mpi.igather(mine.as_ptr(), 1, arrived.as_mut_ptr(), comm)? };
        self.wait(interrupt).without_limit().until_complete(arrival, what)?;
        // SAFETY: the buffer lives for ever.
        let announced = unsafe { self.mpi.ibcast(first.as_mut_ptr(), first.len(), comm)? };
        self.wait(interrupt).without_limit().until_complete(announced, what)?;
        let differing = if *first == hash {
            &[]
        } else {
            &lines[..most(&lines, size)]
        };
        // It parts these lines from those of the rank before. And it is there: to Open MPI, the address of an empty
        // Vec is MPI_IN_PLACE.
        let sent = [b"\n", differing].concat().leak();
        let sizes = self.gather_from(comm, size, &(sent.len() as u32).to_le_bytes(), what, interrupt)?;
        let sizes: Vec<c_int> = sizes
            .chunks_exact(4)
            .map(|bytes| c_int::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            .collect();
        let mut offsets = Vec::with_capacity(size);
        let mut total = 0;
        for one in &sizes {
            offsets.push(total);
            total += one;
        }
        // An operation that is not waited for to its end keeps its buffers.
        let received = vec![0; usize::try_from(total).unwrap_or(0)].leak();
        let (sizes, offsets) = (sizes.leak(), offsets.leak());
        // SAFETY: the buffers live for ever.
        let request = unsafe { self.mpi.igatherv(sent, received.as_mut_ptr(), (sizes, offsets), comm)? };
        self.wait(interrupt).until_complete(request, what)?;
        noted.extend(profile::split(&received[..usize::try_from(total).unwrap_or(0)]));
        Ok(())
    }

    /// Gathers on the root what the ranks recorded, of all of them the sums and of some the rows, and has the report
    /// made. Collective, when MPI ends.
    fn gather_report(&self) -> Result<()> {
        let Some(records) = report::recorded() else {
            return Ok(());
        };
        let what = "the other ranks to finish";
        let interrupt: &mut Interrupt = &mut || Ok(());
        let sent = report::as_bytes(&records.sums).leak();
        let received = vec![0; sent.len() * self.size].leak();
        // MPI_Finalize waits for all ranks, however long they take, and so does this. MPI has the buffers until then.
        // SAFETY: the buffers live for ever.
        let request = unsafe {
            self.mpi
                .igather(sent.as_ptr(), sent.len(), received.as_mut_ptr(), self.comm)?
        };
        self.wait(interrupt).without_limit().until_complete(request, what)?;
        let sums = report::as_numbers(received);
        let each = records.sums.len().max(1);
        let mut announced = [u32::MAX; report::DETAILED];
        if self.rank == 0 {
            let seconds: Vec<f64> = sums.iter().copied().step_by(each).collect();
            for (place, rank) in announced.iter_mut().zip(report::chosen(&seconds)) {
                *place = rank as u32;
            }
        }
        let announced = announced
            .iter()
            .flat_map(|rank| rank.to_le_bytes())
            .collect::<Vec<_>>()
            .leak();
        // SAFETY: the buffer lives for ever.
        let request = unsafe { self.mpi.ibcast(announced.as_mut_ptr(), announced.len(), self.comm)? };
        self.wait(interrupt).without_limit().until_complete(request, what)?;
        let chosen = announced
            .chunks_exact(4)
            .map(|bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize)
            .filter(|&rank| rank < self.size);
        if self.rank > 0 {
            if chosen.into_iter().any(|rank| rank == self.rank) {
                let size_bytes = (records.rows.len() as u64).to_le_bytes().to_vec().leak();
                for sent in [size_bytes, records.rows.leak()] {
                    // SAFETY: the buffers live for ever.
                    let request = unsafe { self.mpi.issend(sent.as_ptr(), sent.len(), 0, self.comm)? };
                    self.wait(interrupt).until_complete(request, what)?;
                }
            }
            return Ok(());
        }
        let mut details = Vec::new();
        for rank in chosen {
            if rank == 0 {
                details.push((rank, records.rows.clone()));
                continue;
            }
            let size_bytes = self.receive(8, rank, what, interrupt)?;
            let size_bytes = size_bytes.iter().rfold(0, |size, &byte| size << 8 | usize::from(byte));
            details.push((rank, self.receive(size_bytes, rank, what, interrupt)?.to_vec()));
        }
        records.make(&sums, &details)
    }

    /// Receives bytes that a rank sends.
    fn receive(&self, size_bytes: usize, rank: usize, what: &str, interrupt: &mut Interrupt) -> Result<&'static [u8]> {
        let buffer = vec![0_u8; size_bytes].leak();
        // SAFETY: the buffer lives for ever.
        let request = unsafe { self.mpi.irecv(buffer.as_mut_ptr(), buffer.len(), rank, self.comm)? };
        self.wait(interrupt).until_complete(request, what)?;
        Ok(buffer)
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

    /// Has the job aborted with `status` when this process ends, and after `grace` even if it does not.
    pub fn abort_at_exit(&'static self, status: c_int, grace: Duration) {
        if !self.is_active() || self.abort_status.swap(status, Ordering::AcqRel) != 0 {
            return;
        }
        // Threads of the program may keep the interpreter from ending.
        let deadline = std::thread::Builder::new().spawn(move || {
            std::thread::sleep(grace);
            if self.thread_level == 3 && self.is_active() {
                leave_store(self, true);
                let _ = self.mpi.abort(status);
            }
            // SAFETY: ends the process at once; the launcher ends the others.
            unsafe { libc::_exit(status) };
        });
        if deadline.is_err() {
            self.abort_now(status);
        }
    }

    /// Ends every rank of the job, this process at once: MPICH's `MPI_Abort` may return.
    pub fn abort_now(&self, status: c_int) {
        if !self.is_active() {
            return;
        }
        leave_store(self, true);
        std::thread::sleep(SETTLE);
        if let Err(cause) = self.mpi.abort(status) {
            eprintln!("mpiimport: {cause}");
        }
        // SAFETY: ends the process at once; the launcher ends the others.
        unsafe { libc::_exit(status) };
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

/// A part of a bundle: offset, size in bytes, CRC-32.
pub type Section = (u64, u64, u32);

/// Where the root has a file that is delivered: a file of its own, or a part of a bundle.
struct Source {
    /// None if it is not there.
    file: Option<Rc<File>>,
    offset: u64,
    size_bytes: Option<u64>,
    /// Of a part of a bundle.
    checksum: Option<u32>,
}

impl Source {
    /// Opens files, many at once, and has the system begin to read them.
    fn files(paths: &[PathBuf]) -> Vec<Self> {
        let opened = modules::in_parallel(paths, modules::threads_for(paths.len()), |path| {
            let file = File::open(path).ok()?;
            let size_bytes = State::of_open(&file).ok()?.size_bytes;
            // Advice that is not taken does no harm.
            let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::WillNeed);
            Some((file, size_bytes))
        });
        let source = |opened: Option<(File, u64)>| {
            let (file, size_bytes) = opened.unzip();
            Self {
                file: file.map(Rc::new),
                offset: 0,
                size_bytes,
                checksum: None,
            }
        };
        opened.into_iter().map(source).collect()
    }

    fn section(bundle: &Rc<File>, (offset, size_bytes, checksum): Section) -> Self {
        Self {
            file: Some(bundle.clone()),
            offset,
            size_bytes: Some(size_bytes),
            checksum: Some(checksum),
        }
    }

    fn reader(&self) -> Reader<'_> {
        Reader {
            source: self,
            whole: true,
            hasher: crc32fast::Hasher::new(),
        }
    }
}

/// The reading of a source from its beginning to its end.
struct Reader<'a> {
    source: &'a Source,
    whole: bool,
    hasher: crc32fast::Hasher,
}

impl Reader<'_> {
    fn read(&mut self, bytes: &mut [u8], offset: u64) {
        let place = self.source.offset + offset;
        self.whole = self.whole
            && self
                .source
                .file
                .as_ref()
                .is_some_and(|file| file.read_exact_at(bytes, place).is_ok());
        if self.source.checksum.is_some() {
            self.hasher.update(bytes);
        }
    }

    /// Whether all was read, and the file is what it was before.
    fn was_whole(self) -> bool {
        let file = self.source.file.as_ref();
        let size = || Some(State::of_open(file?).ok()?.size_bytes);
        self.whole
            && match self.source.checksum {
                Some(checksum) => self.hasher.finalize() == checksum,
                None => size() == self.source.size_bytes,
            }
    }
}

/// Copies that this host begins, one after another; None for those that it has no room for.
struct Copies<'a> {
    incoming: Vec<Option<Incoming>>,
    spare: &'a mut Vec<Box<[u8]>>,
}

/// A part of the copy with this number, on its way.
struct Part {
    copy: usize,
    offset: u64,
    size_bytes: usize,
    bytes: Box<[u8]>,
}

impl Copies<'_> {
    /// The part at this offset of the last copy, to be filled.
    fn part(&mut self, offset: u64, file_bytes: u64) -> Part {
        let new = || vec![0; tree::SEGMENT_BYTES].into_boxed_slice();
        let bytes = self.spare.pop().unwrap_or_else(new);
        Part {
            copy: self.incoming.len() - 1,
            offset,
            size_bytes: usize::try_from(file_bytes - offset)
                .unwrap_or(usize::MAX)
                .min(bytes.len()),
            bytes,
        }
    }

    fn write(&mut self, part: Part) {
        let copy = &mut self.incoming[part.copy];
        let written = copy
            .as_ref()
            .map(|copy| copy.write(&part.bytes[..part.size_bytes], part.offset));
        if let Some(Err(cause)) = written {
            log::debug!("{cause}");
            *copy = None;
        }
        self.spare.push(part.bytes);
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
    fn without_limit(mut self) -> Self {
        self.timeout = Duration::MAX;
        self
    }

    fn until_complete(&mut self, mut request: Request, what: &str) -> Result<()> {
        let mpi = self.mpi;
        self.until(what, || mpi.test(&mut request))
    }

    fn until(&mut self, what: &str, mut is_over: impl FnMut() -> Result<bool>) -> Result<()> {
        let start = Instant::now();
        let mut tests = 0_u32;
        let mut noticed = None;
        let turn = self.rank.max(1).ilog2();
        let patience = self.timeout.saturating_add(TURN * turn);
        let notice = NOTICE.min(self.timeout / 2);
        let notices = self.timeout < Duration::MAX && (self.rank == 0 || self.rank.is_power_of_two());
        while !is_over()? {
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
            if waited > patience {
                return Err(Error::new(format!(
                    "rank {} on {} waited {} s for {what}.",
                    self.rank,
                    hostname(),
                    waited.as_secs()
                )));
            }
            if waited > notice && notices && noticed.is_none() {
                let first = first_on_host("notice");
                if first.is_some() {
                    eprintln!(
                        "mpiimport: rank {} on {} has waited {} s for {what}.",
                        self.rank,
                        hostname(),
                        waited.as_secs()
                    );
                }
                noticed = Some(first.flatten());
            }
        }
        Ok(())
    }
}

fn hash_of(data: &[u8]) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(data);
    hasher.finish()
}

/// So many bytes of these lines may travel, up to the end of a line: MPI counts the bytes of all ranks in an `int`.
fn most(lines: &[u8], ranks: usize) -> usize {
    let limit = (c_int::MAX as usize / ranks - 1).min(NOTES_BYTES);
    if lines.len() <= limit {
        return lines.len();
    }
    lines[..limit].iter().rposition(|&byte| byte == b'\n').unwrap_or(0)
}

/// This host's name, for messages.
pub fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Whether this is the first to ask of the ranks that one launcher started on this host; it stays so until it ends.
pub fn is_first_on_host() -> bool {
    static FIRST: OnceCell<Option<Option<UnixListener>>> = OnceCell::new();
    FIRST.get_or_init(|| first_on_host("end")).is_some()
}

/// What the first of the ranks that one launcher started on this host holds; without a file, and without MPI. Where
/// another user holds it, each rank is the first, with nothing to hold: nobody else may silence them.
fn first_on_host(subject: &str) -> Option<Option<UnixListener>> {
    let launcher = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    let name = format!("mpiimport-{}-{launcher}-{subject}", rustix::process::getuid().as_raw());
    let address = SocketAddr::from_abstract_name(&name).ok()?;
    match UnixListener::bind_addr(&address) {
        Ok(listener) => Some(Some(listener)),
        Err(cause) if cause.kind() == std::io::ErrorKind::AddrInUse && is_held_by_us(&name) => None,
        Err(_) => Some(None), // without a free descriptor, too: rather twice than not at all
    }
}

/// Whether a process of this user listens at an abstract address.
fn is_held_by_us(name: &str) -> bool {
    let peer = || -> rustix::io::Result<_> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
        rustix::net::sockopt::socket_peercred(&socket)
    };
    // Who does not listen at once is none of ours.
    peer().is_ok_and(|peer| peer.uid == rustix::process::getuid())
}

/// Called by MPI_Finalize, whoever calls that: the last moment at which our communicators can be freed.
extern "C" fn in_finalize(_comm: usize, _keyval: c_int, _value: *mut c_void, _extra: *mut c_void) -> c_int {
    let Some(world) = joined() else { return 0 };
    if world.left.swap(true, Ordering::AcqRel) {
        return 0;
    }
    leave_store(world, false);
    if let Err(cause) = world.gather_notes() {
        log::debug!("{cause}");
    }
    if let Err(cause) = world.gather_report() {
        eprintln!("mpiimport: {cause}.");
    }
    let split = world.leaders.into_iter().chain([world.node]);
    for comm in split.filter(|_| world.local_size < world.size).chain([world.comm]) {
        if let Err(cause) = world.mpi.comm_free(comm) {
            eprintln!("mpiimport: {cause}");
        }
    }
    0
}

/// Called by the interpreter after everything of Python's has ended: aborts or finalises MPI if that is ours to do.
pub extern "C" fn at_exit() {
    let Some(world) = joined() else {
        return report::make_alone();
    };
    let active = world.mpi.is_initialized().unwrap_or(false) && !world.mpi.is_finalized().unwrap_or(true);
    let status = world.abort_status.load(Ordering::Acquire);
    let ended = match (active, status) {
        (false, _) => Ok(()),
        (true, 0) if world.own => world.mpi.finalize(),
        (true, 0) => Ok(()),
        (true, status) => {
            leave_store(world, true);
            std::thread::sleep(SETTLE);
            world.mpi.abort(status)
        }
    };
    if let Err(cause) = ended {
        eprintln!("mpiimport: {cause}");
    }
    leave_store(world, false);
}

fn leave_store(world: &World, all_end: bool) {
    // A thread that is copying from a filesystem that hangs must not hold up the end: the next run removes the store.
    let Ok(mut store) = world.store.try_lock() else { return };
    if let Some(Err(cause)) = store.take().map(|store| store.leave(all_end)) {
        eprintln!("mpiimport: {cause}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_travels_is_whole_lines_and_all_ranks_together_fit_one_call(
            lengths in prop::collection::vec(1..100_000_usize, 0..40),
            ranks in prop_oneof![1..40_usize, 1000..100_000_usize],
        ) {
            let questions: Questions = lengths.into_iter().map(|length| vec![b'a'; length]).collect();
            let lines = profile::joined(&questions);
            let sent = &lines[..most(&lines, ranks)];
            prop_assert!(profile::split(sent).all(|line| questions.contains(&line)));
            prop_assert!((sent.len() + 1) * ranks <= c_int::MAX as usize);
        }
    }
}
