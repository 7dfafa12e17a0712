//! What rank 0 shows while a start takes long: a bar on a terminal, elsewhere a line now and then.
//!
//! A thread shows it, so that it is seen, too, that nothing advances.

use std::io::{IsTerminal, Write};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A step that takes no longer is not shown.
const PATIENCE: Duration = Duration::from_secs(1);
const BETWEEN_FRAMES: Duration = Duration::from_millis(100);
const BETWEEN_LINES: Duration = Duration::from_secs(10);
const BAR: usize = 30;
const STACK_BYTES: usize = 128 << 10;
const CLEARED: &str = "\r\x1b[K";

struct Step {
    what: String,
    unit: &'static str,
    /// So much of what is counted makes one unit.
    scale: u64,
    done: u64,
    /// 0 if nobody knows.
    total: u64,
    began: Instant,
    said: Duration,
}

impl Step {
    fn amount(&self) -> String {
        let (done, unit) = (self.done / self.scale, self.unit);
        match self.total / self.scale {
            0 => format!("{done} {unit}"),
            total => format!("{done} of {total} {unit}"),
        }
    }

    fn line(&self) -> String {
        let (amount, seconds) = (self.amount(), self.began.elapsed().as_secs());
        format!("mpiimport: rank 0 {}: {amount}, {seconds} s\n", self.what)
    }

    fn frame(&self) -> String {
        let filled = (self.done.min(self.total) * BAR as u64)
            .checked_div(self.total)
            .unwrap_or(0);
        let bar = "#".repeat(usize::try_from(filled).unwrap_or(BAR));
        format!("{CLEARED}mpiimport: {} [{bar:.<BAR$}] {}", self.what, self.amount())
    }
}

struct Display {
    step: Option<Step>,
    thread: Option<JoinHandle<()>>,
    ended: bool,
}

static DISPLAY: Mutex<Display> = Mutex::new(Display {
    step: None,
    thread: None,
    ended: false,
});
static ENDED: Condvar = Condvar::new();

fn display() -> MutexGuard<'static, Display> {
    DISPLAY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on, steps that take long are shown. Without a thread, none is.
pub fn begin() {
    let mut display = display();
    if display.thread.is_none() {
        display.ended = false;
        display.thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(show).ok();
    }
}

/// Begins a step, what rank 0 does, counted in these units, so many of `scale` each; `total` is 0 if nobody knows.
pub fn step(what: &str, unit: &'static str, scale: u64, total: u64) {
    let mut display = display();
    if display.thread.is_some() {
        display.step = Some(Step {
            what: what.to_owned(),
            unit,
            scale,
            done: 0,
            total,
            began: Instant::now(),
            said: Duration::ZERO,
        });
    }
}

/// So much more is done of this step.
pub fn advance(amount: u64) {
    if let Some(step) = &mut display().step {
        step.done += amount;
    }
}

/// From now on, nothing is shown.
pub fn end() {
    let mut display = display();
    display.step = None;
    display.ended = true;
    let thread = display.thread.take();
    drop(display);
    ENDED.notify_all();
    if let Some(thread) = thread {
        // It has nothing to say but that it is over.
        let _ = thread.join();
    }
}

fn show() {
    let mut output = std::io::stderr();
    let on_terminal = output.is_terminal();
    let mut drawn = false;
    let mut display = self::display();
    while !display.ended {
        let waiting = ENDED.wait_timeout(display, if drawn { BETWEEN_FRAMES } else { PATIENCE / 4 });
        display = waiting.unwrap_or_else(PoisonError::into_inner).0;
        let text = match &mut display.step {
            Some(step) if on_terminal && step.began.elapsed() >= PATIENCE => step.frame(),
            Some(step) if !on_terminal && step.began.elapsed() >= step.said + BETWEEN_LINES => {
                step.said = step.began.elapsed();
                step.line()
            }
            _ if drawn => CLEARED.to_owned(),
            _ => continue,
        };
        drawn = on_terminal && text != CLEARED;
        drop(display); // nobody waits for a terminal that does not take it
        // Who cannot be told needs no telling.
        let _ = output.write_all(text.as_bytes());
        display = self::display();
    }
    drop(display);
    if drawn {
        let _ = output.write_all(CLEARED.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(done: u64, total: u64) -> Step {
        Step {
            what: "copies native code".to_owned(),
            unit: "MB",
            scale: 1_000_000,
            done,
            total,
            began: Instant::now(),
            said: Duration::ZERO,
        }
    }

    #[test]
    fn a_bar_is_as_full_as_the_step_is_done() {
        let filled = |step: &Step| step.frame().matches('#').count();
        assert_eq!(filled(&at(0, 90_000_000)), 0);
        assert_eq!(filled(&at(45_000_000, 90_000_000)), BAR / 2);
        assert_eq!(filled(&at(99_000_000, 90_000_000)), BAR);
        assert!(at(45_000_000, 90_000_000).frame().ends_with("45 of 90 MB"));
    }

    #[test]
    fn where_the_end_is_not_known_it_is_counted() {
        assert!(at(7_000_000, 0).line().contains("copies native code: 7 MB, 0 s\n"));
        assert_eq!(at(7_000_000, 0).frame().matches('#').count(), 0);
    }
}
