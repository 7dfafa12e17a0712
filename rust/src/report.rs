//! The report: what this process recorded of its imports, and the program that makes a file of what the root gathered.
//!
//! What is recorded, Python knows: here are rows of bytes, and numbers that are added up. The rows are bounded, the
//! sums are of everything. The interpreter has ended by the time MPI has, so another one makes the file.

use crate::error::{Error, Result};
use rustix::fs::{MemfdFlags, memfd_create};
use std::ffi::OsString;
use std::fs::File;
use std::io::{ErrorKind, Seek, Write};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// So much of what a rank recorded reaches the report: some ten thousand modules.
const ROWS_BYTES: usize = 2 << 20;
/// So many ranks are reported in detail.
pub const DETAILED: usize = 8;
/// A filesystem that takes longer for a file of a few megabytes has failed.
const LIMIT: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(2);

/// What one process recorded.
pub struct Records {
    pid: u32,
    /// Python's, one after another.
    pub rows: Vec<u8>,
    /// Sums over all that was recorded so far. By the first of them, ranks are slow or fast.
    pub sums: Vec<f64>,
    /// What makes the file, and what it is told beforehand; the root alone has it.
    maker: Option<(Vec<OsString>, Vec<u8>)>,
}

static RECORDS: Mutex<Option<Records>> = Mutex::new(None);

/// From now on, this process records rows and equally many sums.
pub fn start(sums: usize, maker: Option<(Vec<OsString>, Vec<u8>)>) {
    *RECORDS.lock().unwrap_or_else(PoisonError::into_inner) = Some(Records {
        pid: std::process::id(),
        rows: Vec::new(),
        sums: vec![0.0; sums],
        maker,
    });
}

/// Records a row, and what the sums are with it.
pub fn record(row: &[u8], sums: &[f64]) {
    let mut records = RECORDS.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(records) = records.as_mut() else { return };
    if records.rows.len() + row.len() <= ROWS_BYTES {
        records.rows.extend_from_slice(row);
    }
    for (place, sum) in records.sums.iter_mut().zip(sums) {
        *place = *sum;
    }
}

/// What this process recorded; None if it did not, as a forked child. From now on it does not.
pub fn recorded() -> Option<Records> {
    let records = RECORDS.lock().unwrap_or_else(PoisonError::into_inner).take()?;
    (records.pid == std::process::id()).then_some(records)
}

/// The ranks to be reported in detail, in the order of ranks: the root and, of the others sorted by `seconds`, the
/// fastest, the slowest, and some at equal distances between them, the median with them.
pub fn chosen(seconds: &[f64]) -> Vec<usize> {
    let mut others: Vec<usize> = (1..seconds.len()).collect();
    others.sort_by(|&one, &other| seconds[one].total_cmp(&seconds[other]));
    let wanted = DETAILED - 1;
    if others.len() > wanted {
        let last = others.len() - 1;
        others = (0..wanted)
            .map(|at| others[(2 * at * last + wanted - 1) / (2 * (wanted - 1))])
            .collect();
    }
    others.push(0);
    others.sort_unstable();
    others
}

impl Records {
    /// Has the file made, on the root: of the sums of all ranks, one rank after another, and of the rows of some ranks.
    /// Waits for it.
    ///
    /// # Errors
    /// It could not be made, and what was to make it has not said why.
    pub fn make(&self, sums: &[f64], details: &[(usize, Vec<u8>)]) -> Result<()> {
        let Some((command, header)) = &self.maker else {
            return Ok(());
        };
        let failed = |cause: std::io::Error| Error::new(format!("the report was not written: {cause}"));
        // Not a pipe: if its reader died, a signal would end this process.
        let mut file =
            File::from(memfd_create("mpiimport-report", MemfdFlags::CLOEXEC).map_err(|cause| failed(cause.into()))?);
        let mut message = Vec::new();
        let part = |message: &mut Vec<u8>, bytes: &[u8]| {
            message.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
            message.extend_from_slice(bytes);
        };
        part(&mut message, header);
        part(&mut message, &as_bytes(sums));
        for (rank, rows) in details {
            message.extend_from_slice(&(*rank as u64).to_le_bytes());
            part(&mut message, rows);
        }
        file.write_all(&message).and_then(|()| file.rewind()).map_err(failed)?;
        let Some((program, arguments)) = command.split_first() else {
            return Ok(());
        };
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::from(file))
            .stdout(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let began = Instant::now();
        loop {
            match child.try_wait() {
                Ok(None) if began.elapsed() < LIMIT => std::thread::sleep(PAUSE),
                Ok(None) => {
                    let _ = child.kill();
                    return Err(failed(ErrorKind::TimedOut.into()));
                }
                Ok(Some(status)) if status.code().is_none() => {
                    return Err(failed(std::io::Error::other(status.to_string())));
                }
                // It has said what is wrong, if anything is; a program that ignores SIGCHLD does not let us know.
                Ok(Some(_)) | Err(_) => return Ok(()),
            }
        }
    }
}

/// Numbers as they travel.
pub fn as_bytes(numbers: &[f64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// Numbers that have travelled.
pub fn as_numbers(bytes: &[u8]) -> Vec<f64> {
    let number = |bytes: &[u8]| {
        let mut eight = [0; 8];
        eight.copy_from_slice(bytes);
        f64::from_le_bytes(eight)
    };
    bytes.chunks_exact(8).map(number).collect()
}

/// Makes the report of a process without other ranks, when it ends.
pub fn make_alone() {
    if let Some(records) = recorded()
        && let Err(cause) = records.make(&records.sums, &[(0, records.rows.clone())])
    {
        let _ = writeln!(std::io::stderr(), "mpiimport: {cause}.");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_ranks_are_all_reported_in_detail() {
        for size in 1..=DETAILED {
            assert_eq!(chosen(&vec![1.0; size]), (0..size).collect::<Vec<_>>());
        }
    }

    #[test]
    fn of_many_ranks_the_root_the_fastest_the_median_and_the_slowest_are_reported_in_detail() {
        for size in DETAILED + 1..200 {
            // Rank 0 is slow, the others are the slower the higher they are.
            let seconds: Vec<f64> = (0..size)
                .map(|rank| if rank == 0 { 1e6 } else { rank as f64 })
                .collect();
            let ranks = chosen(&seconds);
            assert_eq!(ranks.len(), DETAILED);
            assert!(ranks.windows(2).all(|pair| pair[0] < pair[1]), "{ranks:?}");
            assert_eq!((ranks[0], ranks[1], ranks[DETAILED - 1]), (0, 1, size - 1));
            let below = ranks[DETAILED / 2] - 1;
            assert!(
                below.abs_diff(size - 1 - ranks[DETAILED / 2]) <= 1,
                "{ranks:?} of {size}"
            );
        }
    }

    #[test]
    fn numbers_survive_the_journey() {
        let numbers = [0.0, -1.5, f64::MAX];
        assert_eq!(as_numbers(&as_bytes(&numbers)), numbers);
    }
}
