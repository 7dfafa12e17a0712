//! How a rank waits for an operation of MPI.

use crate::error::{Error, Result};
use crate::host;
use crate::mpi::{Mpi, Request};
use std::time::{Duration, Instant};

/// A waiting rank sleeps this long between two tests: four ranks that spin on two cores double the root's time.
const PAUSE: Duration = Duration::from_micros(100);
/// Tests without a pause, for what is there already.
const EAGER_TESTS: u32 = 50;
/// After this long, or half the time limit if that is less, a wait is worth a line.
pub const NOTICE: Duration = Duration::from_secs(30);
/// Ranks 2 and 3 wait so much longer than 0 and 1, 4 to 7 than those, and so on: who says why the job ends has ended it
/// by then, and a thousand hosts do not all say it.
const TURN: Duration = Duration::from_secs(1);

/// Called now and then during a wait; an error ends the wait.
pub type Interrupt<'a> = dyn FnMut() -> Result<()> + 'a;

/// How a rank waits for an operation of MPI.
pub struct Wait<'a> {
    pub mpi: &'a Mpi,
    pub rank: usize,
    pub timeout: Duration,
    pub interrupt: &'a mut Interrupt<'a>,
}

impl Wait<'_> {
    pub fn without_limit(mut self) -> Self {
        self.timeout = Duration::MAX;
        self
    }

    pub fn until_complete(&mut self, mut request: Request, what: &str) -> Result<()> {
        let mpi = self.mpi;
        self.until(what, || mpi.test(&mut request))
    }

    pub fn until(&mut self, what: &str, mut is_over: impl FnMut() -> Result<bool>) -> Result<()> {
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
                    host::name(),
                    waited.as_secs()
                )));
            }
            if waited > notice && notices && noticed.is_none() {
                let first = host::first("notice");
                if first.is_some() {
                    eprintln!(
                        "mpiimport: rank {} on {} has waited {} s for {what}.",
                        self.rank,
                        host::name(),
                        waited.as_secs()
                    );
                }
                noticed = Some(first.flatten());
            }
        }
        Ok(())
    }
}
