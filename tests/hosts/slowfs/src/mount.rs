//! One host's mount: what FUSE asks, what the tree says to it, and the entry in the ledger. Timing is the server's.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, SessionACL,
    TimeOrNow, WriteFlags,
};
use rustix::fs::AtFlags;

use crate::ledger::{Ledger, Operation};
use crate::server::{Health, Server, Work};
use crate::tree::{Changes, Outcome, Tree};

/// One host's mount.
pub struct Mount {
    host: usize,
    tree: Arc<Tree>,
    server: Arc<Server>,
    ledger: Arc<Ledger>,
}

/// What an operation is about: a node, or a name in it.
type Subject<'a> = (INodeNo, Option<&'a OsStr>);

impl Mount {
    /// Makes the mount of one host.
    pub fn new(host: usize, tree: Arc<Tree>, server: Arc<Server>, ledger: Arc<Ledger>) -> Self {
        Self {
            host,
            tree,
            server,
            ledger,
        }
    }

    /// Mounts it, for all users, with the kernel checking permissions.
    pub fn start(self, name: &str, path: &Path) -> std::io::Result<BackgroundSession> {
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName(format!("slowfs-{name}")),
            MountOption::Subtype("slowfs".into()),
            MountOption::DefaultPermissions,
            MountOption::Exec,
        ];
        config.acl = SessionACL::All;
        fuser::spawn_mount(self, path, &config)
    }

    fn enter(&self, request: &Request, operation: Operation, bytes: u64, (node, name): Subject) {
        self.ledger.enter(self.host, request.pid(), operation, bytes, || {
            self.tree.path(node, name)
        });
    }

    fn health(&self, operation: Operation, (node, name): Subject) -> Health {
        self.server.health(self.host, operation, || self.tree.path(node, name))
    }

    /// Does what is asked, unless this host's client fails in it.
    fn attempt<T>(&self, health: Health, ask: impl FnOnce(&Tree) -> Outcome<T>) -> Outcome<T> {
        if health == Health::Failing {
            Err(Errno::EIO)
        } else {
            ask(&self.tree)
        }
    }

    /// Serves an operation of metadata.
    fn serve<T: Send + 'static>(
        &self,
        request: &Request,
        operation: Operation,
        subject: Subject,
        ask: impl FnOnce(&Tree) -> Outcome<T>,
        reply: impl FnOnce(Outcome<T>) + Send + 'static,
    ) {
        self.enter(request, operation, 0, subject);
        let health = self.health(operation, subject);
        let outcome = self.attempt(health, ask);
        self.server
            .answer(self.host, health, Work::Metadata, Box::new(move || reply(outcome)));
    }

    /// A node that is new to the kernel, or, where names are cached at all, that there is none.
    fn send_entry(&self, reply: ReplyEntry) -> impl FnOnce(Outcome<FileAttr>) + Send + use<> {
        let ttl = self.server.settings().ttl;
        move |found| match found {
            Ok(attributes) => reply.entry(&ttl, &attributes, Generation(0)),
            Err(Errno::ENOENT) if !ttl.is_zero() => reply.entry(&ttl, &NOTHING, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn send_attributes(&self, reply: ReplyAttr) -> impl FnOnce(Outcome<FileAttr>) + Send + use<> {
        let ttl = self.server.settings().ttl;
        move |found| match found {
            Ok(attributes) => reply.attr(&ttl, &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn open_flags(&self) -> FopenFlags {
        if self.server.settings().keep_cache {
            FopenFlags::FOPEN_KEEP_CACHE
        } else {
            FopenFlags::empty()
        }
    }
}

/// To the kernel, node 0 says that there is no such name.
const NOTHING: FileAttr = FileAttr {
    ino: INodeNo(0),
    size: 0,
    blocks: 0,
    atime: UNIX_EPOCH,
    mtime: UNIX_EPOCH,
    ctime: UNIX_EPOCH,
    crtime: UNIX_EPOCH,
    kind: FileType::RegularFile,
    perm: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: 0,
    flags: 0,
};

fn send_empty(reply: ReplyEmpty) -> impl FnOnce(Outcome<()>) + Send {
    move |outcome| match outcome {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for Mount {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // What clients of shared filesystems do, as far as this kernel can.
        for capability in [
            InitFlags::FUSE_AUTO_INVAL_DATA,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_CACHE_SYMLINKS,
        ] {
            let _ = config.add_capabilities(capability);
        }
        let _ = config.set_max_background(64);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let health = self.health("lookup", (parent, Some(name)));
        let found = self.attempt(health, |tree| tree.lookup(parent, name));
        let operation = if matches!(found, Err(Errno::ENOENT)) {
            "lookup_missing"
        } else {
            "lookup"
        };
        self.serve(
            request,
            operation,
            (parent, Some(name)),
            |_| found,
            self.send_entry(reply),
        );
    }

    fn getattr(&self, request: &Request, node: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        self.serve(
            request,
            "getattr",
            (node, None),
            |tree| tree.attributes(node),
            self.send_attributes(reply),
        );
    }

    fn setattr(
        &self,
        request: &Request,
        node: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _created: Option<SystemTime>,
        _changed: Option<SystemTime>,
        _backup: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changes = Changes {
            mode,
            uid,
            gid,
            size,
            atime,
            mtime,
        };
        let change = |tree: &Tree| tree.change(node, &changes);
        self.serve(request, "setattr", (node, None), change, self.send_attributes(reply));
    }

    fn readlink(&self, request: &Request, node: INodeNo, reply: ReplyData) {
        self.serve(
            request,
            "readlink",
            (node, None),
            |tree| tree.target(node),
            |target| match target {
                Ok(target) => reply.data(&target),
                Err(error) => reply.error(error),
            },
        );
    }

    fn open(&self, request: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let open_flags = self.open_flags();
        self.serve(
            request,
            "open",
            (node, None),
            |tree| tree.open(node, flags.0),
            move |handle| match handle {
                Ok(handle) => reply.opened(handle, open_flags),
                Err(error) => reply.error(error),
            },
        );
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (ttl, open_flags) = (self.server.settings().ttl, self.open_flags());
        let owner = (request.uid(), request.gid());
        self.serve(
            request,
            "create",
            (parent, Some(name)),
            |tree| tree.create(parent, name, mode & !umask, flags, owner),
            move |created| match created {
                Ok((attributes, handle)) => reply.created(&ttl, &attributes, Generation(0), handle, open_flags),
                Err(error) => reply.error(error),
            },
        );
    }

    fn read(
        &self,
        request: &Request,
        node: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let health = self.health("read", (node, None));
        let bytes = self.attempt(health, |tree| tree.read(handle, offset, size));
        let length = bytes.as_ref().map_or(0, Vec::len) as u64;
        self.enter(request, "read", length, (node, None));
        let answer = move || match bytes {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error),
        };
        self.server
            .answer(self.host, health, Work::Data(length), Box::new(answer));
    }

    fn write(
        &self,
        request: &Request,
        node: INodeNo,
        handle: FileHandle,
        offset: u64,
        bytes: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.enter(request, "write", bytes.len() as u64, (node, None));
        let health = self.health("write", (node, None));
        let written = self.attempt(health, |tree| tree.write(handle, offset, bytes));
        let answer = move || match written {
            Ok(length) => reply.written(length),
            Err(error) => reply.error(error),
        };
        self.server
            .answer(self.host, health, Work::Data(bytes.len() as u64), Box::new(answer));
    }

    fn fsync(&self, request: &Request, node: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.serve(request, "fsync", (node, None), |_| Ok(()), send_empty(reply));
    }

    fn flush(&self, _request: &Request, _node: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        // The kernel asks once and never again.
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.tree.close(handle);
        reply.ok();
    }

    fn opendir(&self, request: &Request, node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.serve(
            request,
            "opendir",
            (node, None),
            |tree| tree.open_directory(node),
            |handle| match handle {
                Ok(handle) => reply.opened(handle, FopenFlags::empty()),
                Err(error) => reply.error(error),
            },
        );
    }

    fn readdir(&self, request: &Request, node: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.serve(
            request,
            "readdir",
            (node, None),
            |tree| tree.entries(handle),
            move |entries| match entries {
                Ok(entries) => {
                    for (position, entry) in entries.iter().enumerate().skip(offset as usize) {
                        if reply.add(INodeNo(entry.inode), position as u64 + 1, entry.kind, &entry.name) {
                            break;
                        }
                    }
                    reply.ok();
                }
                Err(error) => reply.error(error),
            },
        );
    }

    fn releasedir(&self, _request: &Request, _node: INodeNo, handle: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.tree.close(handle);
        reply.ok();
    }

    fn statfs(&self, request: &Request, node: INodeNo, reply: ReplyStatfs) {
        self.serve(
            request,
            "statfs",
            (node, None),
            |_| Ok(()),
            |outcome| match outcome {
                Ok(()) => reply.statfs(1 << 30, 1 << 29, 1 << 29, 1 << 20, 1 << 19, 4096, 255, 4096),
                Err(error) => reply.error(error),
            },
        );
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let owner = (request.uid(), request.gid());
        let make = |tree: &Tree| tree.make_directory(parent, name, mode & !umask, owner);
        self.serve(request, "mkdir", (parent, Some(name)), make, self.send_entry(reply));
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let owner = (request.uid(), request.gid());
        let make = |tree: &Tree| tree.make_link(parent, name, target, owner);
        self.serve(request, "symlink", (parent, Some(name)), make, self.send_entry(reply));
    }

    fn link(&self, request: &Request, node: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let add = |tree: &Tree| tree.add_name(node, parent, name);
        self.serve(request, "link", (parent, Some(name)), add, self.send_entry(reply));
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let remove = |tree: &Tree| tree.remove(parent, name, AtFlags::empty());
        self.serve(request, "unlink", (parent, Some(name)), remove, send_empty(reply));
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let remove = |tree: &Tree| tree.remove(parent, name, AtFlags::REMOVEDIR);
        self.serve(request, "rmdir", (parent, Some(name)), remove, send_empty(reply));
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let rename = |tree: &Tree| tree.rename((parent, name), (new_parent, new_name), flags.bits());
        self.serve(request, "rename", (parent, Some(name)), rename, send_empty(reply));
    }
}
