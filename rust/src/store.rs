//! The node store: a folder in node-local memory in which the ranks of one host share what they read.
//!
//! ```text
//! /dev/shm/mpiimport-<uid>-<random>/     0700; every rank holds a shared flock on the folder itself
//!     shared                             what is being broadcast; unlinked once every rank has it mapped
//!     root/opt/venv/lib/.../_core.so     native code, where its original lies below /, so that $ORIGIN holds
//!     <key>                              one answer, complete before it has this name
//!     <key>.claim                        flock: the rank that holds it is finding that answer
//! ```
//!
//! A lock dies with its owner, so nothing here depends on a process ending well: the last rank to leave removes the
//! folder, and a later run removes one that nobody has locked. It holds an exclusive lock meanwhile, so a store that is
//! removed between being made and being locked is noticed by its maker, who makes another.

use crate::error::{Error, Result};
use crate::state::State;
use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags, flock, fstat, open, openat, unlinkat};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::ptr;
use std::time::{Duration, Instant};

const PREFIX: &str = "mpiimport-";
/// The extension of a store that is being removed while ranks still use it, because the job is being aborted.
const GONE: &str = "gone";
/// How often a store is made that other runs remove before it is locked: each time takes microseconds.
const ATTEMPTS: usize = 100;
/// What is left for MPI's own use of /dev/shm: MPICH dies when that is full.
const RESERVED_BYTES: u64 = 64 << 20;
const PAUSE: Duration = Duration::from_millis(1);

/// An open node store.
pub struct Store {
    path: PathBuf,
    /// Holds the shared lock.
    folder: OwnedFd,
    /// Given up at the end, when a program may have used up all others: who removes a folder has to open it.
    spare: OwnedFd,
    /// The claims of this process, with the locks that say so.
    claims: HashMap<String, File>,
}

/// A copy that is being written. It is gone if it is dropped before `finish`.
pub struct Incoming {
    file: tempfile::NamedTempFile,
    destination: PathBuf,
}

impl Incoming {
    /// Writes a part of the file.
    ///
    /// # Errors
    /// There is no room for it any more.
    pub fn write(&self, part: &[u8], offset: u64) -> Result<()> {
        self.file
            .as_file()
            .write_all_at(part, offset)
            .map_err(|cause| Error::new(format!("cannot write `{}`: {cause}", self.destination.display())))
    }

    /// Gives the file its name: from now on other ranks can open it, whole.
    ///
    /// # Errors
    /// The store is gone.
    pub fn finish(self) -> Result<()> {
        let destination = self.destination;
        self.file
            .persist(&destination)
            .map(drop)
            .map_err(|cause| Error::new(format!("cannot make `{}`: {}", destination.display(), cause.error)))
    }
}

/// Whether a file of this size leaves room for others where it is to be.
fn check_room(file: &File, size_bytes: u64) -> io::Result<()> {
    let room = rustix::fs::fstatvfs(file)?;
    if room.f_bavail * room.f_frsize < size_bytes.saturating_add(RESERVED_BYTES) {
        return Err(io::Error::from(io::ErrorKind::StorageFull));
    }
    Ok(())
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
        // All of them: a former run may have found the first one full.
        for root in roots {
            if keeps_names(root).is_ok() {
                sweep(root);
            }
        }
        for root in roots {
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

    /// Makes a store in `root` and removes it.
    ///
    /// # Errors
    /// What is wrong with `root`.
    pub fn check(root: &Path) -> Result<()> {
        let made = Self::create_in(root).map_err(|cause| Error::new(cause.to_string()))?;
        made.leave(false)
    }

    fn create_in(root: &Path) -> io::Result<Self> {
        keeps_names(root)?;
        let place = rustix::fs::statvfs(root)?;
        if place.f_flag.contains(rustix::fs::StatVfsMountFlags::NOEXEC) {
            return Err(io::Error::other("it is mounted noexec"));
        }
        let free_bytes = place.f_bavail * place.f_frsize;
        if free_bytes < RESERVED_BYTES {
            return Err(io::Error::other(format!(
                "it has {} MB free, and {} MB are left for MPI",
                free_bytes >> 20,
                RESERVED_BYTES >> 20
            )));
        }
        for _ in 0..ATTEMPTS {
            let path = tempfile::Builder::new()
                .prefix(&own_prefix())
                .rand_bytes(12)
                .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700))
                .tempdir_in(root)?
                .keep();
            match Self::lock(&path) {
                Ok(store) if path.exists() => return Ok(store),
                Err(cause) if !matches!(cause.kind(), io::ErrorKind::NotFound | io::ErrorKind::WouldBlock) => {
                    return Err(cause);
                }
                _ => {}
            }
        }
        Err(io::Error::other("other runs remove what is made there"))
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
            spare: folder.try_clone()?,
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
    /// There is no room.
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
            check_room(&file, size_bytes as u64)?;
            // A full tmpfs is an error here, and no SIGBUS later.
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

    /// Where the copy of a file is, or would be. A path with `..` has no copy: where folders are links, it is not the
    /// place that its letters say, which may be another file's or outside of the store.
    pub fn copy_path(&self, original: &Path) -> Option<PathBuf> {
        let relative = original.strip_prefix("/").unwrap_or(original);
        let is_plain = relative.components().all(|part| part != Component::ParentDir);
        is_plain.then(|| self.path.join("root").join(relative))
    }

    /// Whether there is a copy, and not only a link to the original.
    pub fn has_copy(&self, original: &Path) -> bool {
        self.copy_path(original)
            .is_some_and(|copy| fs::symlink_metadata(copy).is_ok_and(|metadata| metadata.is_file()))
    }

    /// Links to a file beside the copies of its siblings, where nothing is yet.
    ///
    /// # Errors
    /// The folder or the link cannot be made.
    pub fn link(&self, original: &Path) -> Result<()> {
        let Some(link) = self.copy_path(original) else {
            return Ok(()); // nor have its siblings a copy
        };
        let make = || -> io::Result<()> {
            fs::create_dir_all(link.parent().unwrap_or(&self.path))?;
            match std::os::unix::fs::symlink(original, &link) {
                Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                result => result,
            }
        };
        make().map_err(|cause| self.error("link", &original.display().to_string(), &cause))
    }

    /// Begins the copy of a file; it is not there until [`Incoming::finish`].
    ///
    /// # Errors
    /// There is no room for it, or no place.
    pub fn receive(&self, original: &Path, size_bytes: u64) -> Result<Incoming> {
        let Some(destination) = self.copy_path(original) else {
            return Err(Error::new(format!(
                "no copy is made of `{}`: its path has `..`",
                original.display()
            )));
        };
        let begin = || -> io::Result<Incoming> {
            let folder = destination.parent().unwrap_or(&self.path);
            fs::create_dir_all(folder)?;
            let file = tempfile::Builder::new().prefix(".incoming-").tempfile_in(folder)?;
            check_room(file.as_file(), size_bytes)?;
            Ok(Incoming {
                file,
                destination: destination.clone(),
            })
        };
        begin().map_err(|cause| self.error("copy", &original.display().to_string(), &cause))
    }

    /// Copies a file that no broadcast brought.
    ///
    /// # Errors
    /// It cannot be read, changes meanwhile, or there is no room.
    pub fn copy(&self, original: &Path) -> Result<()> {
        let fail = |cause: &io::Error| self.error("copy", &original.display().to_string(), cause);
        let mut source = File::open(original).map_err(|cause| fail(&cause))?;
        let size_bytes = State::of_open(&source).map_err(|cause| fail(&cause.into()))?.size_bytes;
        let mut incoming = self.receive(original, size_bytes)?;
        let copied = io::copy(&mut source, incoming.file.as_file_mut()).map_err(|cause| fail(&cause))?;
        if copied != size_bytes {
            return Err(fail(&io::Error::from(io::ErrorKind::UnexpectedEof)));
        }
        incoming.finish()
    }

    /// Takes a file's name away; who has it mapped keeps it.
    ///
    /// # Errors
    /// It is not there.
    pub fn unlink(&self, name: &str) -> Result<()> {
        fs::remove_file(self.path.join(name)).map_err(|cause| self.error("remove", name, &cause))
    }

    /// Leaves the store; the last rank to leave removes it, or the first if `all_end`: if the job is being aborted.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn leave(self, all_end: bool) -> Result<()> {
        drop(self.claims);
        drop(self.spare);
        let mut path = self.path;
        if all_end {
            // The others may be adding to it: under another name they cannot.
            let gone = path.with_extension(GONE);
            if fs::rename(&path, &gone).is_ok() {
                path = gone;
            }
        } else if flock(&self.folder, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(());
        }
        remove(&self.folder, &path)
            .map_err(|cause| Error::new(format!("cannot remove the node store `{}`: {cause}", path.display())))
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
        match remove(&folder, &path) {
            Ok(()) => log::debug!("removed the abandoned node store `{}`", path.display()),
            Err(cause) => log::debug!("cannot remove the abandoned node store `{}`: {cause}", path.display()),
        }
    }
}

/// Whether nobody else can move what this user makes in a folder: a store that is removed would be another folder.
fn keeps_names(root: &Path) -> io::Result<()> {
    let mode = fs::metadata(root)?.mode();
    if mode & 0o022 != 0 && mode & 0o1000 == 0 {
        return Err(io::Error::other(
            "others can rename what is made there; chmod +t would mend that",
        ));
    }
    Ok(())
}

/// Removes a store, which others may be removing too.
fn remove(folder: &OwnedFd, path: &Path) -> io::Result<()> {
    empty(folder, Path::new("."))?;
    unless_gone(fs::remove_dir(path))
}

/// Removes what is in a part of a store, with one descriptor at a time.
fn empty(store: &OwnedFd, part: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let entries = match openat(store, part, flags, Mode::empty()) {
        Ok(opened) => Dir::new(opened)?.collect::<rustix::io::Result<Vec<_>>>()?,
        Err(cause) => return unless_gone(Err(cause.into())),
    };
    for entry in entries {
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let path = part.join(OsStr::from_bytes(name));
        match unlinkat(store, &path, AtFlags::empty()) {
            Err(Errno::ISDIR) => {
                empty(store, &path)?;
                unless_gone(unlinkat(store, &path, AtFlags::REMOVEDIR).map_err(io::Error::from))?;
            }
            outcome => unless_gone(outcome.map_err(io::Error::from))?,
        }
    }
    Ok(())
}

fn unless_gone(outcome: io::Result<()>) -> io::Result<()> {
    outcome.or_else(|cause| match cause.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(cause),
    })
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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    const SHORT: Duration = Duration::from_millis(50);

    fn root() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn create(root: &tempfile::TempDir) -> Store {
        Store::create(&[root.path().to_owned()]).unwrap()
    }

    /// A folder as a store leaves it whose ranks were all killed.
    fn abandoned(root: &tempfile::TempDir, name: &str) -> PathBuf {
        let path = root.path().join(name);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(path.join("answer"), "left behind").unwrap();
        path
    }

    #[test]
    fn a_store_belongs_to_its_user_alone() {
        let root = root();
        let store = create(&root);
        let metadata = fs::symlink_metadata(store.path()).unwrap();
        assert_eq!(metadata.mode() & 0o7777, 0o700);
        Store::open(store.path()).unwrap();
        for mode in [0o750, 0o705, 0o720] {
            fs::set_permissions(store.path(), fs::Permissions::from_mode(mode)).unwrap();
            assert!(Store::open(store.path()).is_err(), "mode {mode:o}");
        }
        fs::set_permissions(store.path(), fs::Permissions::from_mode(0o700)).unwrap();
        // Only root can give a folder away.
        if chown(store.path(), Some(65534), None).is_ok() {
            assert!(Store::open(store.path()).is_err());
        }
    }

    #[test]
    fn what_is_no_folder_is_refused() {
        let root = root();
        let store = create(&root);
        let (link, file) = (root.path().join("link"), root.path().join("file"));
        symlink(store.path(), &link).unwrap();
        fs::write(&file, "").unwrap();
        for path in [&link, &file, &root.path().join("absent")] {
            let cause = Store::open(path).err().unwrap().to_string();
            assert!(cause.contains(&path.display().to_string()), "{cause}");
        }
    }

    #[test]
    fn the_first_root_that_allows_it_is_used() {
        let (absent, usable) = (root().path().join("absent"), root());
        let store = Store::create(&[absent.clone(), usable.path().to_owned()]).unwrap();
        assert_eq!(store.path().parent(), Some(usable.path()));
        let file = usable.path().join("file");
        fs::write(&file, "").unwrap();
        let cause = Store::create(&[absent.clone(), file.clone()])
            .err()
            .unwrap()
            .to_string();
        for root in [absent, file] {
            assert!(cause.contains(&root.display().to_string()), "{cause}");
        }
    }

    #[test]
    fn one_rank_finds_an_answer_and_others_get_it() {
        let root = root();
        let mut first = create(&root);
        let mut second = Store::open(first.path()).unwrap();
        assert_eq!(second.get("key").unwrap(), None);
        assert_eq!(first.claim("key").unwrap(), Claim::Ours);
        assert_eq!(second.claim("key").unwrap(), Claim::Taken);
        assert_eq!(second.claim("other").unwrap(), Claim::Ours);
        first.put("key", b"answer").unwrap();
        assert_eq!(second.claim("key").unwrap(), Claim::Answered);
        assert_eq!(second.get("key").unwrap().unwrap(), b"answer");
        assert_eq!(first.claim("key").unwrap(), Claim::Answered);
    }

    #[test]
    fn a_claim_can_be_given_up_and_dies_with_its_owner() {
        let root = root();
        let mut first = create(&root);
        let mut second = Store::open(first.path()).unwrap();
        let mut third = Store::open(first.path()).unwrap();
        assert_eq!(first.claim("key").unwrap(), Claim::Ours);
        first.release("key");
        assert_eq!(second.claim("key").unwrap(), Claim::Ours);
        drop(second);
        assert_eq!(third.claim("key").unwrap(), Claim::Ours);
        third.leave(false).unwrap();
        assert_eq!(first.claim("key").unwrap(), Claim::Ours);
    }

    #[test]
    fn a_wait_for_a_claim_ends_with_the_answer_or_in_time() {
        let root = root();
        let mut first = create(&root);
        let mut second = Store::open(first.path()).unwrap();
        assert_eq!(first.claim("key").unwrap(), Claim::Ours);
        assert_eq!(claim_within(SHORT, || second.claim("key")).unwrap(), Claim::Taken);
        let finding = std::thread::spawn(move || {
            std::thread::sleep(SHORT);
            first.put("key", b"answer").unwrap();
            first
        });
        let long = Duration::from_secs(60);
        assert_eq!(claim_within(long, || second.claim("key")).unwrap(), Claim::Answered);
        finding.join().unwrap();
    }

    #[test]
    fn the_last_to_leave_removes_the_store() {
        let root = root();
        let mut first = create(&root);
        let second = Store::open(first.path()).unwrap();
        let killed = Store::open(first.path()).unwrap();
        let path = first.path().to_owned();
        assert_eq!(first.claim("key").unwrap(), Claim::Ours);
        first.leave(false).unwrap();
        assert!(path.exists());
        drop(killed);
        second.leave(false).unwrap();
        assert!(!path.exists());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_first_to_leave_removes_it_where_all_end() {
        let root = root();
        let first = create(&root);
        let second = Store::open(first.path()).unwrap();
        first.leave(true).unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
        second.leave(true).unwrap();
    }

    #[test]
    fn a_store_that_is_gone_is_no_error_for_who_leaves() {
        let root = root();
        let mut store = create(&root);
        fs::remove_dir_all(store.path()).unwrap();
        assert!(store.claim("key").is_err());
        assert!(store.put("key", b"answer").is_err());
        assert_eq!(store.get("key").unwrap(), None);
        store.leave(false).unwrap();
    }

    #[test]
    fn abandoned_stores_are_removed_and_others_are_not() {
        let root = root();
        let prefix = own_prefix();
        let dead = abandoned(&root, &format!("{prefix}dead"));
        let gone = abandoned(&root, &format!("{prefix}dead.{GONE}"));
        let others = abandoned(&root, "mpiimport-4294967294-other");
        let open_to_all = abandoned(&root, &format!("{prefix}open"));
        fs::set_permissions(&open_to_all, fs::Permissions::from_mode(0o777)).unwrap();
        let target = abandoned(&root, "target");
        symlink(&target, root.path().join(format!("{prefix}link"))).unwrap();
        let living = create(&root);
        let next = create(&root);
        for path in [&dead, &gone] {
            assert!(!path.exists(), "{}", path.display());
        }
        let in_use = living.path().to_owned();
        for path in [&others, &open_to_all, &target.join("answer"), &in_use] {
            assert!(path.exists(), "{}", path.display());
        }
        assert_ne!(next.path(), living.path());
    }

    #[test]
    fn abandoned_stores_are_removed_wherever_one_may_be_made() {
        let (first, second) = (root(), root());
        let dead = abandoned(&second, &format!("{}dead", own_prefix()));
        let store = Store::create(&[first.path().to_owned(), second.path().to_owned()]).unwrap();
        assert_eq!(store.path().parent(), Some(first.path()));
        assert!(!dead.exists());
    }

    #[test]
    fn runs_that_begin_at_the_same_time_each_have_a_store() {
        let root = root();
        let begin = || (0..50).for_each(|_| create(&root).leave(false).unwrap());
        let (done, living) = std::thread::scope(|scope| {
            let runs: Vec<_> = (0..4).map(|_| scope.spawn(begin)).collect();
            let living: Vec<_> = (0..20).map(|_| create(&root)).collect();
            (runs.into_iter().all(|run| run.join().is_ok()), living)
        });
        assert!(done);
        assert!(living.iter().all(|store| store.path().exists()));
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), living.len());
    }

    #[test]
    fn a_file_is_shared_by_mapping_it_and_outlives_its_name() {
        let root = root();
        let (first, text) = (create(&root), b"shared by all");
        let second = Store::open(first.path()).unwrap();
        assert!(second.map("file", text.len()).is_err());
        first.map_new("file", text.len()).unwrap().copy_from_slice(text);
        assert!(second.map("file", text.len() + 1).is_err());
        let mapped = second.map("file", text.len()).unwrap();
        first.unlink("file").unwrap();
        assert_eq!(mapped, text);
        assert!(first.unlink("file").is_err());
        first.map_new("empty", 0).unwrap();
        assert_eq!(second.map("empty", 0).unwrap(), b"");
    }

    #[test]
    fn what_has_no_room_leaves_nothing_behind() {
        let root = root();
        let store = create(&root);
        assert!(store.map_new("file", 1 << 60).is_err());
        assert!(store.receive(Path::new("/usr/lib/large.so"), 1 << 60).is_err());
        assert!(!store.path().join("file").exists());
        let copies = store.copy_path(Path::new("/usr/lib")).unwrap();
        assert_eq!(fs::read_dir(copies).unwrap().count(), 0);
    }

    #[test]
    fn a_copy_is_there_when_it_is_whole() {
        const PAGE: usize = 65536;
        let root = root();
        let store = create(&root);
        let original = Path::new("/opt/venv/lib/module.so");
        let copy = store.copy_path(original).unwrap();
        assert_eq!(copy, store.path().join("root/opt/venv/lib/module.so"));
        drop(store.receive(original, 10).unwrap());
        assert_eq!(fs::read_dir(copy.parent().unwrap()).unwrap().count(), 0);
        let incoming = store.receive(original, 2 * PAGE as u64).unwrap();
        incoming.write(&[b'b'; PAGE], PAGE as u64).unwrap();
        incoming.write(&[b'a'; PAGE], 0).unwrap();
        assert!(!copy.exists() && !store.has_copy(original));
        incoming.finish().unwrap();
        assert!(store.has_copy(original));
        let bytes = fs::read(&copy).unwrap();
        assert_eq!((bytes.len(), bytes[PAGE - 1], bytes[PAGE]), (2 * PAGE, b'a', b'b'));
    }

    #[test]
    fn a_link_stands_for_what_is_not_copied() {
        let root = root();
        let store = create(&root);
        let (original, sibling) = (root.path().join("module.so"), root.path().join("sibling.so"));
        fs::write(&original, "native").unwrap();
        fs::write(&sibling, "beside it").unwrap();
        store.copy(&original).unwrap();
        for _ in 0..2 {
            store.link(&original).unwrap();
            store.link(&sibling).unwrap();
        }
        assert!(store.has_copy(&original) && !store.has_copy(&sibling));
        assert_eq!(fs::read_link(store.copy_path(&sibling).unwrap()).unwrap(), sibling);
        assert_eq!(
            fs::read_to_string(store.copy_path(&original).unwrap()).unwrap(),
            "native"
        );
        assert!(store.copy(&root.path().join("absent.so")).is_err());
    }
    #[test]
    fn a_folder_in_which_others_can_rename_is_neither_used_nor_swept() {
        let root = root();
        let dead = abandoned(&root, &format!("{}dead", own_prefix()));
        for mode in [0o777, 0o770, 0o702] {
            fs::set_permissions(root.path(), fs::Permissions::from_mode(mode)).unwrap();
            let cause = Store::create(&[root.path().to_owned()]).err().unwrap().to_string();
            assert!(cause.contains("others can rename"), "{cause}");
            assert!(dead.exists());
        }
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        create(&root);
        assert!(!dead.exists());
    }

    proptest! {
        #[test]
        fn whatever_a_path_is_nothing_is_written_outside_of_the_store(
            parts in prop::collection::vec(prop_oneof![3 => Just("..".to_owned()), 2 => "[a-z.]{0,3}", 1 => "[^/\\x00]{1,9}"], 0..9),
            absolute: bool,
        ) {
            // Deeper than any of these paths leads, were it followed.
            let root = root();
            let home = root.path().join("a/b/c/d/e/f");
            fs::create_dir_all(&home).unwrap();
            let store = Store::create(&[home]).unwrap();
            let original = PathBuf::from(format!("{}{}", if absolute { "/" } else { "" }, parts.join("/")));
            let made = store.receive(&original, 1).and_then(Incoming::finish).is_ok();
            prop_assert_eq!(made, store.has_copy(&original));
            prop_assert!(!made || !parts.contains(&"..".to_owned()));
            let _ = store.link(&original);
            for folder in store.path().ancestors().take_while(|folder| folder.starts_with(root.path())) {
                let names: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
                prop_assert!(names.len() == 1 || folder == store.path() && names.is_empty(), "{names:?}");
            }
        }

        #[test]
        fn any_answer_comes_back_whole(key in "[0-9a-f]{16}", answer in prop::collection::vec(any::<u8>(), 0..300)) {
            let root = root();
            let mut store = create(&root);
            store.put(&key, &answer).unwrap();
            prop_assert_eq!(store.get(&key).unwrap(), Some(answer));
        }
    }
}
