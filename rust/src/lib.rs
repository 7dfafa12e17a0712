//! The core of mpiimport: what needs system calls, foreign functions, or many bytes.
//!
//! ```text
//! python.rs    what Python asks of the core; the only file that knows PyO3
//!   world.rs     the ranks of one job: communicators, broadcasts
//!     world/wait.rs      how a rank waits
//!     world/delivery.rs  files, copied to each host
//!     world/ending.rs    how a job ends
//!     tree.rs      the way of bytes from host to host
//!     libmpi.rs    which MPI library is opened, and why
//!     mpi.rs       the foreign calls to it
//!     abi.rs       the constants of the three binary interfaces
//!     store.rs     what the ranks of one host share
//!     profile.rs   what they asked, kept for the next run
//!     report.rs    what they recorded, for a file that says where the time went
//!     host.rs      this host's name, and who speaks on it
//!   modules.rs   what importlib would find and read, by many threads
//!   code.rs      code as it travels, compressed
//!   closure.rs   which libraries a native module brings along
//!     elf.rs       what a native library asks of the dynamic loader
//!   bundle.rs    what was made ahead of time, read from one file
//!     trust.rs     whose file is believed
//!   state.rs     what a file is, how large, and when it was modified
//!   progress.rs  what rank 0 shows while that takes long
//!   error.rs     the one error type
//! ```

pub mod abi;
pub mod bundle;
pub mod closure;
pub mod code;
pub mod elf;
pub mod error;
pub mod host;
pub mod libmpi;
pub mod modules;
pub mod mpi;
pub mod profile;
pub mod progress;
#[cfg(feature = "python")]
mod python;
pub mod report;
pub mod state;
pub mod store;
pub mod tree;
pub mod trust;
pub mod world;
