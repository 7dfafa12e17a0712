//! The node store: a folder in node-local memory in which the ranks of one host share what they read.
//!
//! ```text
//! /dev/shm/mpiimport-<uid>-<random>/     0700; every rank holds a shared flock on the folder itself
//!     ready                              made once the folder is locked: from then on an unlocked one is abandoned
//!     shared                             what is being broadcast; unlinked once every rank has it mapped
//!     <key>                              one answer, complete before it has this name
//!     <key>.claim                        flock: the rank that holds it is finding that answer
//! ```
//!
//! A lock dies with its owner, so nothing here depends on a process ending well: the last rank to leave removes the
//! folder, and a later run removes one that nobody has locked.

use crate::error::{Error, Result};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, fstat, open};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::time::{Duration, Instant, SystemTime};

const PREFIX: &str = "mpiimport-";
const READY: &str = "ready";
/// A folder without `ready` is between `mkdir` and `flock`, unless its maker died in those microseconds.
const MAKING: Duration = Duration::from_secs(60);
/// What is left for MPI's own use of /dev/shm: MPICH dies when that is full.
const RESERVED_BYTES: u64 = 64 << 20;
const PAUSE: Duration = Duration::from_millis(1);

/// An open node store.
pub struct Store {
    path: PathBuf,
    /// Holds the shared lock.
    folder: OwnedFd,
    /// The claims of this process, with the locks that say so.
    claims: HashMap<String, File>,
}

/// What became of an attempt to claim an answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Claim {
    /// This rank is to find the answer, then `put` or `release` it.
    Ours,
    /// Another rank has put it.
    Answered,
    /// Another rank is at it.
    Taken,
}

impl Store {
    /// Makes a store in the first of `roots` that allows it, after removing abandoned ones there.
    ///
    /// # Errors
    /// What was wrong with each of the roots.
    pub fn create(roots: &[PathBuf]) -> Result<Self> {
        let mut causes = Vec::new();
        for root in roots {
            sweep(root);
            match Self::create_in(root) {
                Ok(store) => return Ok(store),
                Err(cause) => causes.push(format!("`{}`: {cause}", root.display())),
            }
        }
        Err(Error::new(format!(
            "no node store: nothing can be made in {}",
            causes.join(", ")
        )))
    }

    fn create_in(root: &Path) -> io::Result<Self> {
        let path = tempfile::Builder::new()
            .prefix(&own_prefix())
            .rand_bytes(12)
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .tempdir_in(root)?
            .keep();
        let store = Self::lock(&path)?;
        File::create_new(path.join(READY))?;
        Ok(store)
    }

    /// Opens a store that another rank of this host made.
    ///
    /// # Errors
    /// It is not a folder of this user that nobody else can write to.
    pub fn open(path: &Path) -> Result<Self> {
        Self::lock(path).map_err(|cause| Error::new(format!("cannot use the node store `{}`: {cause}", path.display())))
    }

    fn lock(path: &Path) -> io::Result<Self> {
        let folder = open_own_folder(path)?;
        flock(&folder, FlockOperation::NonBlockingLockShared)?;
        Ok(Self {
            path: path.to_owned(),
            folder,
            claims: HashMap::new(),
        })
    }

    /// Where the store is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The answer with this key, if a rank has put it.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        match fs::read(self.path.join(key)) {
            Ok(answer) => Ok(Some(answer)),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(self.error("read", key, &cause)),
        }
    }

    /// Tries once to become the rank that finds the answer.
    ///
    /// # Errors
    /// The claim's file cannot be made.
    pub fn claim(&mut self, key: &str) -> Result<Claim> {
        if self.path.join(key).exists() {
            return Ok(Claim::Answered);
        }
        let path = self.path.join(format!("{key}.claim"));
        let file = File::options()
            .create(true)
            .append(true)
            .open(path)
            .map_err(|cause| self.error("claim", key, &cause))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) if self.path.join(key).exists() => Ok(Claim::Answered),
            Ok(()) => {
                self.claims.insert(key.to_owned(), file);
                Ok(Claim::Ours)
            }
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(Claim::Taken),
            Err(cause) => Err(self.error("claim", key, &cause.into())),
        }
    }

    /// Stores an answer, complete before it can be seen, and gives up the claim.
    ///
    /// # Errors
    /// There is no room, or the store is gone.
    pub fn put(&mut self, key: &str, answer: &[u8]) -> Result<()> {
        let put = || -> io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(&self.path)?;
            file.write_all(answer)?;
            file.persist(self.path.join(key))?;
            Ok(())
        };
        let result = put().map_err(|cause| self.error("write", key, &cause));
        self.release(key);
        result
    }

    /// Gives up a claim without an answer.
    pub fn release(&mut self, key: &str) {
        self.claims.remove(key);
    }

    /// Makes a file of this size and maps it, for this rank to fill and the others to [`map`](Self::map).
    ///
    /// # Errors
    /// There is no room: space is reserved first, so that a full tmpfs is an error here and no SIGBUS later.
    pub fn map_new(&self, name: &str, size_bytes: usize) -> Result<&'static mut [u8]> {
        let map = || -> io::Result<&'static mut [u8]> {
            let file = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(self.path.join(name))?;
            if size_bytes == 0 {
                return Ok(&mut []);
            }
            let room = rustix::fs::fstatvfs(&file)?;
            if room.f_bavail * room.f_frsize < size_bytes as u64 + RESERVED_BYTES {
                return Err(io::Error::from(io::ErrorKind::StorageFull));
            }
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, size_bytes as u64)?;
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: a new mapping of a file that only the ranks of this job have, never unmapped.
            unsafe {
                let address = mmap(ptr::null_mut(), size_bytes, protection, MapFlags::SHARED, &file, 0)?;
                Ok(std::slice::from_raw_parts_mut(address.cast(), size_bytes))
            }
        };
        map().map_err(|cause| {
            // Nothing is left of a file that could not be made whole; the first error is the one to tell.
            let _ = fs::remove_file(self.path.join(name));
            self.error("make", name, &cause)
        })
    }

    /// Maps a file that another rank has made and filled.
    ///
    /// # Errors
    /// It is not there, or of another size.
    pub fn map(&self, name: &str, size_bytes: usize) -> Result<&'static [u8]> {
        let map = || -> io::Result<&'static [u8]> {
            let file = File::open(self.path.join(name))?;
            if file.metadata()?.len() != size_bytes as u64 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
            if size_bytes == 0 {
                return Ok(&[]);
            }
            // SAFETY: nobody writes to the file any more, and it is never unmapped.
            unsafe {
                let address = mmap(ptr::null_mut(), size_bytes, ProtFlags::READ, MapFlags::SHARED, &file, 0)?;
                Ok(std::slice::from_raw_parts(address.cast(), size_bytes))
            }
        };
        map().map_err(|cause| self.error("map", name, &cause))
    }

    /// Takes a file's name away; who has it mapped keeps it.
    ///
    /// # Errors
    /// It is not there.
    pub fn unlink(&self, name: &str) -> Result<()> {
        fs::remove_file(self.path.join(name)).map_err(|cause| self.error("remove", name, &cause))
    }

    /// Leaves the store; the last rank to leave removes it.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn leave(self) -> Result<()> {
        drop(self.claims);
        if flock(&self.folder, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(());
        }
        match fs::remove_dir_all(&self.path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(Error::new(format!(
                "cannot remove the node store `{}`: {cause}",
                self.path.display()
            ))),
            _ => Ok(()),
        }
    }

    fn error(&self, what: &str, key: &str, cause: &io::Error) -> Error {
        Error::new(format!(
            "cannot {what} `{key}` in the node store `{}`: {cause}",
            self.path.display()
        ))
    }
}

/// Waits until `claim` says something other than [`Claim::Taken`], at most `timeout`.
///
/// # Errors
/// As `claim`.
pub fn claim_within(timeout: Duration, mut claim: impl FnMut() -> Result<Claim>) -> Result<Claim> {
    let start = Instant::now();
    loop {
        match claim()? {
            Claim::Taken if start.elapsed() < timeout => std::thread::sleep(PAUSE),
            outcome => return Ok(outcome),
        }
    }
}

/// Removes the stores of this user below `root` that nobody has locked.
fn sweep(root: &Path) {
    let Ok(entries) = fs::read_dir(root) else { return };
    let prefix = own_prefix();
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(&prefix) {
            continue;
        }
        let path = entry.path();
        // A store in use, or not ours, is passed over: that is no error.
        let Ok(folder) = open_own_folder(&path) else { continue };
        if flock(&folder, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        let age = entry
            .metadata()
            .and_then(|metadata| metadata.modified())
            .ok()
            .and_then(|modified| SystemTime::now().duration_since(modified).ok());
        if path.join(READY).exists() || age.is_some_and(|age| age > MAKING) {
            match fs::remove_dir_all(&path) {
                Ok(()) => log::debug!("removed the abandoned node store `{}`", path.display()),
                Err(cause) => log::debug!("cannot remove the abandoned node store `{}`: {cause}", path.display()),
            }
        }
    }
}

fn own_prefix() -> String {
    format!("{PREFIX}{}-", rustix::process::getuid().as_raw())
}

/// Opens a folder that belongs to this user alone; follows no link.
fn open_own_folder(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = open(path, flags, Mode::empty())?;
    let status = fstat(&folder)?;
    if status.st_uid != rustix::process::getuid().as_raw() || status.st_mode & 0o077 != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "it does not belong to this user alone",
        ));
    }
    Ok(folder)
}
