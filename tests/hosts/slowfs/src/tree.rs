//! Which file of the backing tree a node stands for, and what is done to it. Knows no host and no delay.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileHandle, FileType, INodeNo, TimeOrNow};
use parking_lot::Mutex;
use rustix::fs::{self, AtFlags, CWD, Gid, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps, Uid};

/// The outcome of an operation.
pub type Outcome<T> = Result<T, Errno>;

/// An entry of a directory.
pub struct Entry {
    /// The number of the backing file.
    pub inode: u64,
    /// What it is.
    pub kind: FileType,
    /// Its name.
    pub name: OsString,
}

/// What is to be changed of a file.
#[derive(Default)]
pub struct Changes {
    /// Permissions.
    pub mode: Option<u32>,
    /// The owner.
    pub uid: Option<u32>,
    /// The group.
    pub gid: Option<u32>,
    /// The length.
    pub size: Option<u64>,
    /// The time of the last access.
    pub atime: Option<TimeOrNow>,
    /// The time of the last change.
    pub mtime: Option<TimeOrNow>,
}

/// A node stays open, as a path only, from the first time it is looked up: its number is never given to another file.
#[derive(Default)]
struct Nodes {
    open: HashMap<u64, Arc<OwnedFd>>,
    numbers: HashMap<(u64, u64), u64>,
}

#[derive(Clone)]
enum Handle {
    File(Arc<File>),
    Directory(Arc<Vec<Entry>>),
}

/// The backing tree.
pub struct Tree {
    nodes: Mutex<Nodes>,
    handles: Mutex<HashMap<u64, Handle>>,
    last_handle: AtomicU64,
}

impl Tree {
    /// Opens the tree below a folder.
    pub fn new(folder: &Path) -> std::io::Result<Self> {
        let root = fs::open(
            folder,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let tree = Self {
            nodes: Mutex::default(),
            handles: Mutex::default(),
            last_handle: AtomicU64::new(0),
        };
        tree.nodes.lock().open.insert(INodeNo::ROOT.0, Arc::new(root));
        Ok(tree)
    }

    /// Returns where a node lies, for people to read.
    pub fn path(&self, node: INodeNo, name: Option<&OsStr>) -> String {
        let folder = self
            .node(node)
            .ok()
            .and_then(|node| std::fs::read_link(reopening(&node)).ok());
        let mut path = folder.unwrap_or_else(|| PathBuf::from("?"));
        path.extend(name);
        path.to_string_lossy().into_owned()
    }

    /// Finds a name in a directory.
    pub fn lookup(&self, parent: INodeNo, name: &OsStr) -> Outcome<FileAttr> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = fs::openat(&*self.node(parent)?, name, flags, Mode::empty()).map_err(errno)?;
        let stat = status(&file)?;
        let mut nodes = self.nodes.lock();
        let next = INodeNo::ROOT.0 + 1 + nodes.numbers.len() as u64;
        let number = *nodes.numbers.entry((stat.st_dev, stat.st_ino)).or_insert(next);
        nodes.open.entry(number).or_insert_with(|| Arc::new(file));
        Ok(attributes(INodeNo(number), &stat))
    }

    /// Returns a node's attributes.
    pub fn attributes(&self, node: INodeNo) -> Outcome<FileAttr> {
        Ok(attributes(node, &status(&*self.node(node)?)?))
    }

    /// Changes a node's attributes and returns them.
    pub fn change(&self, node: INodeNo, changes: &Changes) -> Outcome<FileAttr> {
        let file = self.node(node)?;
        if let Some(mode) = changes.mode {
            fs::chmodat(CWD, reopening(&file), Mode::from_raw_mode(mode), AtFlags::empty()).map_err(errno)?;
        }
        if changes.uid.is_some() || changes.gid.is_some() {
            own(&*file, "", changes.uid, changes.gid)?;
        }
        if let Some(size) = changes.size {
            OpenOptions::new().write(true).open(reopening(&file))?.set_len(size)?;
        }
        if changes.atime.is_some() || changes.mtime.is_some() {
            let times = Timestamps {
                last_access: timespec(changes.atime),
                last_modification: timespec(changes.mtime),
            };
            fs::utimensat(CWD, reopening(&file), &times, AtFlags::empty()).map_err(errno)?;
        }
        self.attributes(node)
    }

    /// Reads a symbolic link.
    pub fn target(&self, node: INodeNo) -> Outcome<Vec<u8>> {
        Ok(fs::readlinkat(&*self.node(node)?, "", Vec::new())
            .map_err(errno)?
            .into_bytes())
    }

    /// Opens a file.
    pub fn open(&self, node: INodeNo, flags: i32) -> Outcome<FileHandle> {
        let flags = opening(flags) - (OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW);
        let file = fs::open(reopening(&*self.node(node)?), flags, Mode::empty()).map_err(errno)?;
        Ok(self.keep(Handle::File(Arc::new(file.into()))))
    }

    /// Makes a file, and opens it.
    pub fn create(&self, parent: INodeNo, name: &OsStr, mode: u32, flags: i32, owner: Owner) -> Outcome<Created> {
        let flags = opening(flags) | OFlags::CREATE;
        let file = fs::openat(&*self.node(parent)?, name, flags, Mode::from_raw_mode(mode)).map_err(errno)?;
        own(&file, "", Some(owner.0), Some(owner.1))?;
        Ok((
            self.lookup(parent, name)?,
            self.keep(Handle::File(Arc::new(file.into()))),
        ))
    }

    /// Reads from an open file: fewer bytes than asked only at its end.
    pub fn read(&self, handle: FileHandle, offset: u64, size: u32) -> Outcome<Vec<u8>> {
        let file = self.file(handle)?;
        let mut bytes = vec![0; size as usize];
        let mut filled = 0;
        while filled < bytes.len() {
            match file.read_at(&mut bytes[filled..], offset + filled as u64)? {
                0 => break,
                read => filled += read,
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }

    /// Writes to an open file.
    pub fn write(&self, handle: FileHandle, offset: u64, bytes: &[u8]) -> Outcome<u32> {
        self.file(handle)?.write_all_at(bytes, offset)?;
        Ok(bytes.len() as u32)
    }

    /// Opens a directory, and reads it.
    pub fn open_directory(&self, node: INodeNo) -> Outcome<FileHandle> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = fs::open(reopening(&*self.node(node)?), flags, Mode::empty()).map_err(errno)?;
        let mut entries = Vec::new();
        for entry in fs::Dir::new(folder).map_err(errno)? {
            let entry = entry.map_err(errno)?;
            let name = OsString::from_vec(entry.file_name().to_bytes().to_vec());
            entries.push(Entry {
                inode: entry.ino(),
                kind: kind(entry.file_type()),
                name,
            });
        }
        Ok(self.keep(Handle::Directory(Arc::new(entries))))
    }

    /// Returns what an open directory held when it was opened.
    pub fn entries(&self, handle: FileHandle) -> Outcome<Arc<Vec<Entry>>> {
        match self.handles.lock().get(&handle.0) {
            Some(Handle::Directory(entries)) => Ok(entries.clone()),
            _ => Err(Errno::EBADF),
        }
    }

    /// Closes a file or directory.
    pub fn close(&self, handle: FileHandle) {
        self.handles.lock().remove(&handle.0);
    }

    /// Makes a directory.
    pub fn make_directory(&self, parent: INodeNo, name: &OsStr, mode: u32, owner: Owner) -> Outcome<FileAttr> {
        let folder = self.node(parent)?;
        fs::mkdirat(&*folder, name, Mode::from_raw_mode(mode)).map_err(errno)?;
        own(&*folder, name, Some(owner.0), Some(owner.1))?;
        self.lookup(parent, name)
    }

    /// Makes a symbolic link.
    pub fn make_link(&self, parent: INodeNo, name: &OsStr, target: &Path, owner: Owner) -> Outcome<FileAttr> {
        let folder = self.node(parent)?;
        fs::symlinkat(target, &*folder, name).map_err(errno)?;
        own(&*folder, name, Some(owner.0), Some(owner.1))?;
        self.lookup(parent, name)
    }

    /// Gives a file one more name.
    pub fn add_name(&self, node: INodeNo, parent: INodeNo, name: &OsStr) -> Outcome<FileAttr> {
        fs::linkat(&*self.node(node)?, "", &*self.node(parent)?, name, AtFlags::EMPTY_PATH).map_err(errno)?;
        self.lookup(parent, name)
    }

    /// Removes a file, or an empty directory.
    pub fn remove(&self, parent: INodeNo, name: &OsStr, flags: AtFlags) -> Outcome<()> {
        fs::unlinkat(&*self.node(parent)?, name, flags).map_err(errno)
    }

    /// Renames a file or directory.
    pub fn rename(&self, from: (INodeNo, &OsStr), to: (INodeNo, &OsStr), flags: u32) -> Outcome<()> {
        let flags = RenameFlags::from_bits_retain(flags);
        fs::renameat_with(&*self.node(from.0)?, from.1, &*self.node(to.0)?, to.1, flags).map_err(errno)
    }

    fn node(&self, node: INodeNo) -> Outcome<Arc<OwnedFd>> {
        self.nodes.lock().open.get(&node.0).cloned().ok_or(Errno::ESTALE)
    }

    fn file(&self, handle: FileHandle) -> Outcome<Arc<File>> {
        match self.handles.lock().get(&handle.0) {
            Some(Handle::File(file)) => Ok(file.clone()),
            _ => Err(Errno::EBADF),
        }
    }

    fn keep(&self, handle: Handle) -> FileHandle {
        let number = self.last_handle.fetch_add(1, Ordering::Relaxed) + 1;
        self.handles.lock().insert(number, handle);
        FileHandle(number)
    }
}

/// Whose a new file is: user and group of the process that asked.
pub type Owner = (u32, u32);

/// A new file's attributes, and the handle by which it is open.
pub type Created = (FileAttr, FileHandle);

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_i32(error.raw_os_error())
}

/// What is open as a path only is opened, or changed, by this name.
fn reopening(file: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// The kernel gives each write its offset; O_APPEND would override it.
fn opening(flags: i32) -> OFlags {
    (OFlags::from_bits_retain(flags as u32) | OFlags::CLOEXEC) - OFlags::APPEND
}

fn own(file: impl AsFd, name: impl AsRef<OsStr>, uid: Option<u32>, gid: Option<u32>) -> Outcome<()> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
    let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
    fs::chownat(file, Path::new(&name), uid, gid, flags).map_err(errno)
}

fn status(file: &OwnedFd) -> Outcome<Stat> {
    fs::statat(file, "", AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW).map_err(errno)
}

fn attributes(node: INodeNo, stat: &Stat) -> FileAttr {
    FileAttr {
        ino: node,
        size: stat.st_size as u64,
        blocks: stat.st_blocks as u64,
        atime: time(stat.st_atime, stat.st_atime_nsec),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        crtime: UNIX_EPOCH,
        kind: kind(fs::FileType::from_raw_mode(stat.st_mode)),
        perm: (stat.st_mode & 0o7777) as u16,
        nlink: stat.st_nlink as u32,
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: stat.st_rdev as u32,
        blksize: 4096,
        flags: 0,
    }
}

fn kind(kind: fs::FileType) -> FileType {
    match kind {
        fs::FileType::Directory => FileType::Directory,
        fs::FileType::Symlink => FileType::Symlink,
        fs::FileType::Socket => FileType::Socket,
        fs::FileType::Fifo => FileType::NamedPipe,
        fs::FileType::CharacterDevice => FileType::CharDevice,
        fs::FileType::BlockDevice => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

fn time(seconds: i64, nanoseconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::new(seconds.max(0) as u64, nanoseconds as u32)
}

fn timespec(time: Option<TimeOrNow>) -> Timespec {
    match time {
        None => Timespec {
            tv_sec: 0,
            tv_nsec: fs::UTIME_OMIT,
        },
        Some(TimeOrNow::Now) => Timespec {
            tv_sec: 0,
            tv_nsec: fs::UTIME_NOW,
        },
        Some(TimeOrNow::SpecificTime(time)) => {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            Timespec {
                tv_sec: since.as_secs() as i64,
                tv_nsec: since.subsec_nanos().into(),
            }
        }
    }
}
