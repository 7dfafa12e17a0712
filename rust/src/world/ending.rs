//! How a job ends: what the ranks noted and recorded reaches the root, the node store is left, MPI is finalised or
//! aborted.

use super::wait::Interrupt;
use super::{World, joined};
use crate::error::Result;
use crate::mpi::Comm;
use crate::profile::{self, Profile, Questions};
use crate::report;
use std::ffi::{c_int, c_void};
use std::hash::Hasher;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Hydra drops what it has not read of a rank's output when that rank calls MPI_Abort: tracebacks were cut short in
/// one of 40 runs without a pause.
pub const SETTLE: Duration = Duration::from_millis(100);
/// So much of what a rank asked reaches the profile: ten thousand questions.
const NOTES_BYTES: usize = 1 << 20;

impl World {
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
}

/// Called by MPI_Finalize, whoever calls that: the last moment at which our communicators can be freed.
pub extern "C" fn in_finalize(_comm: usize, _keyval: c_int, _value: *mut c_void, _extra: *mut c_void) -> c_int {
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
        profile::keep_alone();
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
