//! When an operation is answered. The metadata server and the data server each work off one queue, which all hosts
//! share; a reply leaves when its turn is over. Nothing here knows what an operation does.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::settings::Settings;

/// Sends one answer to the kernel.
pub type Reply = Box<dyn FnOnce() + Send>;

/// What an operation costs the servers.
#[derive(Clone, Copy)]
pub enum Work {
    /// One turn of the metadata server.
    Metadata,
    /// One turn of the data server, of this many bytes.
    Data(u64),
}

/// How a host's client does.
#[derive(Clone, Copy, Default, PartialEq)]
pub enum Health {
    /// Answers come.
    #[default]
    Well,
    /// Every operation fails with EIO.
    Failing,
    /// No answer comes before the host is well again.
    Hanging,
}

/// What is wrong with a host's client.
#[derive(Default)]
pub struct Fault {
    /// How it does.
    pub health: Health,
    /// Only with what lies at or below this path.
    pub below: Option<PathBuf>,
    /// Only in operations of this name.
    pub operation: Option<String>,
}

/// One server's queue: it is busy until then, and has been for so long.
struct Queue {
    free_at: Instant,
    busy: Duration,
}

impl Queue {
    fn new() -> Self {
        Self {
            free_at: Instant::now(),
            busy: Duration::ZERO,
        }
    }

    /// Returns when work that takes so long is done, if it is handed in now.
    fn take(&mut self, now: Instant, takes: Duration) -> Instant {
        self.busy += takes;
        self.free_at = self.free_at.max(now) + takes;
        self.free_at
    }
}

/// A reply that waits for its time. Those of the same instant leave in the order they came.
struct Due {
    at: Instant,
    sequence: u64,
    reply: Reply,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.sequence == other.sequence
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

struct State {
    settings: Settings,
    metadata: Queue,
    data: Queue,
    waiting: BinaryHeap<Reverse<Due>>,
    sequence: u64,
    faults: Vec<Fault>,
    held: Vec<(usize, Work, Reply)>,
}

/// The metadata server and the data server.
pub struct Server {
    state: Mutex<State>,
    earlier: Condvar,
}

impl Server {
    /// Opens for this many hosts.
    pub fn new(settings: Settings, hosts: usize) -> Self {
        let state = State {
            settings,
            metadata: Queue::new(),
            data: Queue::new(),
            waiting: BinaryHeap::new(),
            sequence: 0,
            faults: std::iter::repeat_with(Fault::default).take(hosts).collect(),
            held: Vec::new(),
        };
        Self {
            state: Mutex::new(state),
            earlier: Condvar::new(),
        }
    }

    /// Returns the settings of this moment.
    pub fn settings(&self) -> Settings {
        self.state.lock().settings
    }

    /// Changes one setting.
    pub fn set(&self, name: &str, value: &str) -> Result<(), String> {
        self.state.lock().settings.set(name, value)
    }

    /// Returns how long the metadata server and the data server have worked.
    pub fn busy(&self) -> (Duration, Duration) {
        let state = self.state.lock();
        (state.metadata.busy, state.data.busy)
    }

    /// Counts their work from now.
    pub fn reset(&self) {
        let mut state = self.state.lock();
        state.metadata.busy = Duration::ZERO;
        state.data.busy = Duration::ZERO;
    }

    /// Returns how a host's client does in this operation.
    pub fn health(&self, host: usize, operation: &str, path: impl FnOnce() -> String) -> Health {
        let state = self.state.lock();
        let Some(fault) = state.faults.get(host) else {
            return Health::Well;
        };
        let is_meant = fault.operation.as_ref().is_none_or(|meant| meant == operation)
            && fault
                .below
                .as_ref()
                .is_none_or(|meant| Path::new(&path()).starts_with(meant));
        if is_meant { fault.health } else { Health::Well }
    }

    /// Changes how a host's client does. What was held back is then served as if it came now.
    pub fn set_fault(&self, host: usize, fault: Fault) {
        let mut state = self.state.lock();
        if let Some(known) = state.faults.get_mut(host) {
            *known = fault;
        }
        let (now_served, held): (Vec<_>, Vec<_>) = std::mem::take(&mut state.held)
            .into_iter()
            .partition(|(of, ..)| *of == host);
        state.held = held;
        drop(state);
        for (host, work, reply) in now_served {
            self.answer(host, Health::Well, work, reply);
        }
    }

    /// Returns how many operations of a host are held back.
    pub fn held(&self, host: usize) -> usize {
        self.state.lock().held.iter().filter(|(of, ..)| *of == host).count()
    }

    /// Sends the reply when the servers have done this work; if the host's client hangs in it, after that.
    pub fn answer(&self, host: usize, health: Health, work: Work, reply: Reply) {
        let now = Instant::now();
        let mut state = self.state.lock();
        let hangs = |fault: &Fault| health == Health::Hanging && fault.health == Health::Hanging;
        if state.faults.get(host).is_some_and(hangs) {
            state.held.push((host, work, reply));
            return;
        }
        let settings = state.settings;
        let done = match work {
            Work::Metadata => state.metadata.take(now, settings.service),
            Work::Data(bytes) => {
                let moving = match settings.bytes_per_s {
                    0 => Duration::ZERO,
                    bytes_per_s => Duration::from_secs_f64(bytes as f64 / bytes_per_s as f64),
                };
                state.data.take(now, settings.read + moving)
            }
        };
        let at = done + settings.latency;
        if at <= now {
            drop(state);
            reply();
            return;
        }
        state.sequence += 1;
        let sequence = state.sequence;
        state.waiting.push(Reverse(Due { at, sequence, reply }));
        let is_next = state.waiting.peek().is_some_and(|next| next.0.sequence == sequence);
        drop(state);
        if is_next {
            self.earlier.notify_one();
        }
    }

    /// Starts the thread that sends replies when their time has come.
    pub fn start(self: &Arc<Self>) -> std::io::Result<()> {
        let server = self.clone();
        std::thread::Builder::new()
            .name("replies".into())
            .spawn(move || server.send_replies())?;
        Ok(())
    }

    fn send_replies(&self) {
        // The default slack of 50 us is as long as what is simulated.
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
        let mut state = self.state.lock();
        loop {
            match state.waiting.peek().map(|next| next.0.at) {
                None => self.earlier.wait(&mut state),
                Some(at) if at > Instant::now() => {
                    self.earlier.wait_until(&mut state, at);
                }
                Some(_) => {
                    let due = state.waiting.pop();
                    drop(state);
                    if let Some(Reverse(due)) = due {
                        (due.reply)();
                    }
                    state = self.state.lock();
                }
            }
        }
    }
}
