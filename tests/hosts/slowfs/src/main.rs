//! A FUSE filesystem that shows one tree to several simulated hosts, as slowly as a cluster's shared filesystem would.
//!
//! Each host has a mount, hence a kernel cache, of its own; all share one metadata server, which serves one operation
//! after another. Every operation is counted by host and rank. A socket takes commands while it runs.
//!
//! | file | question it answers |
//! |---|---|
//! | `settings.rs` | how slow, what may clients cache, which mounts |
//! | `tree.rs` | which file does a node stand for, and what is done to it |
//! | `mount.rs` | what does FUSE ask, and what is answered |
//! | `server.rs` | when is it answered: queues, delays, hosts that fail or hang |
//! | `ledger.rs` | who asked for what |
//! | `control.rs` | what can be asked from outside |

mod control;
mod ledger;
mod mount;
mod server;
mod settings;
mod tree;

use std::error::Error;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::ledger::Ledger;
use crate::mount::Mount;
use crate::server::Server;
use crate::settings::Arguments;
use crate::tree::Tree;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("slowfs: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Mounts, says `ready`, and obeys commands until killed: the mounts end with the process.
fn run() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    allow_many_open_files()?;
    let hosts: Vec<String> = arguments.mounts.iter().map(|(host, _)| host.clone()).collect();
    let tree = Arc::new(Tree::new(&arguments.backing)?);
    let server = Arc::new(Server::new(arguments.settings, hosts.len()));
    server.start()?;
    let ledger = Arc::new(Ledger::new(hosts.clone()));
    let mut sessions = Vec::new();
    for (host, (name, path)) in arguments.mounts.iter().enumerate() {
        let mount = Mount::new(host, tree.clone(), server.clone(), ledger.clone());
        sessions.push(
            mount
                .start(name, path)
                .map_err(|error| format!("cannot mount {}: {error}", path.display()))?,
        );
    }
    let listener = UnixListener::bind(&arguments.control)
        .map_err(|error| format!("cannot listen at {}: {error}", arguments.control.display()))?;
    println!("ready");
    control::serve(&listener, &hosts, &server, &ledger);
    Ok(())
}

/// Each file that was ever looked up stays open, as a path only.
fn allow_many_open_files() -> Result<(), Box<dyn Error>> {
    let wanted = 1 << 20;
    let most = Rlimit {
        current: Some(wanted),
        maximum: Some(wanted),
    };
    if setrlimit(Resource::Nofile, most).is_err() {
        let maximum = getrlimit(Resource::Nofile).maximum;
        setrlimit(
            Resource::Nofile,
            Rlimit {
                current: maximum,
                maximum,
            },
        )?;
    }
    Ok(())
}
