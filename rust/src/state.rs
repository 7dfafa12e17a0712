//! What a file is, how large, and when it was modified; not when it was read last, for which a client of a shared
//! filesystem asks the server again after each reading.

use crate::modules;
use rustix::fd::AsFd;
use rustix::fs::{AtFlags, CWD, FileType, Stat, Statx, StatxFlags, fstat, makedev, stat, statfs, statx};
use rustix::io::{Errno, Result};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

const NS_PER_S: i64 = 1_000_000_000;
const ASKED: StatxFlags = StatxFlags::TYPE.union(StatxFlags::SIZE).union(StatxFlags::MTIME);

/// The state of a file or folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// What it is.
    pub file_type: FileType,
    /// Its size.
    pub size_bytes: u64,
    /// The time of its modification, since 1970.
    pub modified_ns: i64,
    /// The number of the filesystem that it is on.
    pub device: u64,
}

impl State {
    /// The state of what is at a path; links are followed.
    ///
    /// # Errors
    /// As stat(2).
    pub fn of(path: &Path) -> Result<Self> {
        match statx(CWD, path, AtFlags::empty(), ASKED) {
            Err(Errno::NOSYS) => stat(path).map(Self::from), // before Linux 4.11
            found => found.map(Self::from),
        }
    }

    /// The state of what is open.
    ///
    /// # Errors
    /// As fstat(2).
    pub fn of_open(file: impl AsFd) -> Result<Self> {
        match statx(file.as_fd(), "", AtFlags::EMPTY_PATH, ASKED) {
            Err(Errno::NOSYS) => fstat(file).map(Self::from),
            found => found.map(Self::from),
        }
    }

    /// The time of its modification in whole seconds since 1970.
    pub fn modified_s(&self) -> i64 {
        self.modified_ns.div_euclid(NS_PER_S)
    }
}

impl From<Statx> for State {
    fn from(found: Statx) -> Self {
        Self {
            file_type: FileType::from_raw_mode(found.stx_mode.into()),
            size_bytes: found.stx_size,
            modified_ns: nanoseconds(found.stx_mtime.tv_sec, found.stx_mtime.tv_nsec.into()),
            device: makedev(found.stx_dev_major, found.stx_dev_minor),
        }
    }
}

#[allow(clippy::useless_conversion, reason = "the types differ between machines")]
impl From<Stat> for State {
    fn from(found: Stat) -> Self {
        Self {
            file_type: FileType::from_raw_mode(found.st_mode),
            size_bytes: u64::try_from(found.st_size).unwrap_or(0),
            modified_ns: nanoseconds(found.st_mtime.into(), i64::try_from(found.st_mtime_nsec).unwrap_or(0)),
            device: found.st_dev.into(),
        }
    }
}

/// The types of the filesystems that files are on, as statfs(2) has them; each filesystem is asked once.
pub fn filesystem_types(paths: &[PathBuf]) -> Vec<Option<u64>> {
    let mut known = HashMap::new();
    let devices = modules::in_parallel(paths, modules::threads_for(paths.len()), |path| {
        Some(State::of(path).ok()?.device)
    });
    let kind = |path: &Path| Some(u64::from_ne_bytes(statfs(path).ok()?.f_type.to_ne_bytes()) & 0xffff_ffff);
    let each = paths.iter().zip(devices);
    each.map(|(path, device)| *known.entry(device?).or_insert_with(|| kind(path)))
        .collect()
}

fn nanoseconds(seconds: i64, rest_ns: i64) -> i64 {
    seconds.saturating_mul(NS_PER_S).saturating_add(rest_ns)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_state_is_what_the_system_says() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "12345").unwrap();
        let metadata = fs::metadata(&path).unwrap();
        let state = State::of(&path).unwrap();
        assert_eq!(state, State::of_open(File::open(&path).unwrap()).unwrap());
        assert_eq!(state, State::from(stat(&path).unwrap()));
        assert_eq!((state.file_type, state.size_bytes), (FileType::RegularFile, 5));
        assert_eq!(
            state.modified_ns,
            metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec()
        );
        assert_eq!(State::of(folder.path()).unwrap().file_type, FileType::Directory);
        assert_eq!(State::of(&path.with_extension("absent")), Err(Errno::NOENT));
    }

    #[test]
    fn filesystems_have_the_types_that_statfs_says() {
        let paths: Vec<PathBuf> = ["/proc/self", "/", "/absent", "/proc", "/etc"]
            .map(PathBuf::from)
            .into();
        let found = filesystem_types(&paths);
        assert_eq!((found[0], found[2], found[3]), (Some(0x9fa0), None, Some(0x9fa0)));
        assert!(found[1].is_some() && found[4].is_some());
    }
}
