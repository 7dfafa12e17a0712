//! This host: its name, and who of its ranks speaks first.

use once_cell::sync::OnceCell;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

/// This host's name, for messages.
pub fn name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Whether this is the first to ask of the ranks that one launcher started on this host; it stays so until it ends.
pub fn is_first_to_end() -> bool {
    static FIRST: OnceCell<Option<Option<UnixListener>>> = OnceCell::new();
    FIRST.get_or_init(|| first("end")).is_some()
}

/// What the first of the ranks that one launcher started on this host holds; without a file, and without MPI. Where
/// another user holds it, each rank is the first, with nothing to hold: nobody else may silence them.
pub fn first(subject: &str) -> Option<Option<UnixListener>> {
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
