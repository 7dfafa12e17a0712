//! Who asked for what: operations and bytes by host and by the thread that asked, with the rank it belongs to.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::fs;
use std::time::Instant;

use parking_lot::Mutex;

/// Where launchers tell a process its rank.
const RANK_VARIABLES: [&str; 4] = ["OMPI_COMM_WORLD_RANK=", "PMI_RANK=", "PMIX_RANK=", "SLURM_PROCID="];

/// An operation, as FUSE calls it.
pub type Operation = &'static str;

#[derive(Clone, Copy, Default)]
struct Tally {
    count: u64,
    bytes: u64,
}

/// What a thread is known to be.
#[derive(Clone)]
enum Caller {
    Rank(u32),
    Process(String),
}

/// One thread's operations.
#[derive(Default)]
struct Account {
    tallies: BTreeMap<Operation, Tally>,
    total: u64,
    caller: Option<Caller>,
}

struct Traced {
    at: Instant,
    account: (usize, u32),
    operation: Operation,
    path: String,
    bytes: u64,
}

#[derive(Default)]
struct Books {
    accounts: HashMap<(usize, u32), Account>,
    trace: Option<Vec<Traced>>,
}

/// All accounts, by host and thread.
pub struct Ledger {
    hosts: Vec<String>,
    books: Mutex<Books>,
}

impl Ledger {
    /// Opens the books for these hosts.
    pub fn new(hosts: Vec<String>) -> Self {
        Self {
            hosts,
            books: Mutex::default(),
        }
    }

    /// Enters one operation. The thread waits for its answer, so what /proc says of it is about itself.
    pub fn enter(&self, host: usize, thread: u32, operation: Operation, bytes: u64, path: impl FnOnce() -> String) {
        let mut books = self.books.lock();
        let account = books.accounts.entry((host, thread)).or_default();
        let tally = account.tallies.entry(operation).or_default();
        tally.count += 1;
        tally.bytes += bytes;
        account.total += 1;
        // A launcher's child learns its rank when it starts the program, as the same thread: ask again, but ever less.
        let is_rank = matches!(account.caller, Some(Caller::Rank(_)));
        if !is_rank && (account.total <= 64 || account.total.is_power_of_two()) {
            account.caller = caller(thread).or(account.caller.take());
        }
        if let Some(trace) = &mut books.trace {
            trace.push(Traced {
                at: Instant::now(),
                account: (host, thread),
                operation,
                path: path(),
                bytes,
            });
        }
    }

    /// Forgets everything so far. A trace goes on.
    pub fn reset(&self) {
        self.books.lock().accounts.clear();
    }

    /// Starts a trace, which holds every operation with its path.
    pub fn start_trace(&self) {
        self.books.lock().trace = Some(Vec::new());
    }

    /// Ends it and returns a line for each: seconds, host, caller, operation, bytes, path.
    pub fn stop_trace(&self) -> String {
        let mut books = self.books.lock();
        let trace = books.trace.take().unwrap_or_default();
        let mut lines = String::new();
        let Some(began) = trace.first().map(|first| first.at) else {
            return lines;
        };
        for Traced {
            at,
            account,
            operation,
            path,
            bytes,
        } in trace
        {
            let seconds = (at - began).as_secs_f64();
            let caller = books.accounts.get(&account).and_then(|account| account.caller.clone());
            let (host, caller) = (self.host(account.0), named(caller.as_ref()));
            let path = path.escape_debug();
            let _ = writeln!(lines, "{seconds:.6}\t{host}\t{caller}\t{operation}\t{bytes}\t{path}");
        }
        lines
    }

    /// Returns a line for each host, caller and operation: host, caller, operation, count, bytes.
    pub fn report(&self) -> String {
        let mut sums: BTreeMap<(&str, String, Operation), Tally> = BTreeMap::new();
        for ((host, _), account) in &self.books.lock().accounts {
            for (operation, tally) in &account.tallies {
                let sum = sums
                    .entry((self.host(*host), named(account.caller.as_ref()), operation))
                    .or_default();
                sum.count += tally.count;
                sum.bytes += tally.bytes;
            }
        }
        let mut lines = String::new();
        for ((host, caller, operation), Tally { count, bytes }) in sums {
            let _ = writeln!(lines, "{host}\t{caller}\t{operation}\t{count}\t{bytes}");
        }
        lines
    }

    fn host(&self, host: usize) -> &str {
        self.hosts.get(host).map_or("?", String::as_str)
    }
}

/// A rank is a number, any other process has its name in parentheses.
fn named(caller: Option<&Caller>) -> String {
    match caller {
        Some(Caller::Rank(rank)) => rank.to_string(),
        Some(Caller::Process(name)) => format!("({name})"),
        None => "(?)".into(),
    }
}

/// Asks /proc what a thread is. Its environment is the one that its program was started with.
fn caller(thread: u32) -> Option<Caller> {
    let environment = fs::read(format!("/proc/{thread}/environ")).ok()?;
    for variable in RANK_VARIABLES {
        for setting in environment.split(|byte| *byte == 0) {
            let value = setting
                .strip_prefix(variable.as_bytes())
                .and_then(|value| str::from_utf8(value).ok());
            if let Some(rank) = value.and_then(|value| value.parse().ok()) {
                return Some(Caller::Rank(rank));
            }
        }
    }
    let name = fs::read_to_string(format!("/proc/{thread}/comm")).ok()?;
    Some(Caller::Process(name.trim().escape_debug().to_string()))
}
