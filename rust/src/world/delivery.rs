//! Files of the root, copied to the node store of each host.

use super::World;
use super::wait::Interrupt;
use crate::error::{Error, Result};
use crate::modules;
use crate::mpi::Comm;
use crate::progress;
use crate::state::State;
use crate::store::Incoming;
use crate::tree::{self, Tree};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// So many copies are begun before any has its name: each is an open file.
const FILES_AT_ONCE: usize = 64;

impl World {
    /// Copies files of the root to the node store of each host, and says which of them this host has. Collective.
    ///
    /// Each byte crosses to a host once, from the root's file into its copy. A file that the root cannot read to
    /// its end is on no host; one that a host has no room for is not on that host. `links` are made beside the copies;
    /// a host that has no room for them has no copies: they may open what is linked when they run.
    ///
    /// # Errors
    /// As all waits. The job cannot go on after it.
    pub fn deliver_files(
        &self,
        paths: &[PathBuf],
        links: &[PathBuf],
        bundle: Option<(&File, &[Section])>,
        what: &str,
        interrupt: &mut Interrupt,
    ) -> Result<Vec<bool>> {
        let mut present = vec![0_u8; paths.len()];
        if let Some(leaders) = self.leaders {
            let linked = self.with_store(|store| links.iter().try_for_each(|original| store.link(original)));
            let linked = linked.is_none_or(|linked| linked.map_err(|cause| log::debug!("{cause}")).is_ok());
            let bundle = match bundle {
                Some((file, sections)) => {
                    let file = file
                        .try_clone()
                        .map_err(|cause| Error::new(format!("cannot read the bundle: {cause}")))?;
                    Some((Rc::new(file), sections))
                }
                None => None,
            };
            let mut spare = Vec::new();
            for (at, paths) in paths.chunks(FILES_AT_ONCE).enumerate() {
                let first = at * FILES_AT_ONCE;
                let sources: Vec<Source> = match &bundle {
                    _ if self.rank != 0 => Vec::new(),
                    Some((file, sections)) => sections[first..first + paths.len()]
                        .iter()
                        .map(|&section| Source::section(file, section))
                        .collect(),
                    None => Source::files(paths),
                };
                let arrived = self.deliver_some(leaders, paths, &sources, &mut spare, what, interrupt)?;
                for (present, arrived) in present[first..].iter_mut().zip(arrived) {
                    *present = u8::from(arrived && linked);
                }
            }
        }
        let present = self.broadcast_pieces(self.node, present.leak(), what, interrupt)?;
        Ok(present.iter().map(|&one| one == 1).collect())
    }

    /// Copies some files between the first ranks of the hosts; only the root has `sources`.
    fn deliver_some(
        &self,
        leaders: Comm,
        paths: &[PathBuf],
        sources: &[Source],
        spare: &mut Vec<Box<[u8]>>,
        what: &str,
        interrupt: &mut Interrupt,
    ) -> Result<Vec<bool>> {
        let mut announced = vec![0; paths.len() * 8];
        for (place, source) in announced.chunks_exact_mut(8).zip(sources) {
            place.copy_from_slice(&source.size_bytes.unwrap_or(u64::MAX).to_le_bytes());
        }
        let announced = self.broadcast_pieces(leaders, announced.leak(), what, interrupt)?;
        let sizes = announced
            .chunks_exact(8)
            .map(|bytes| bytes.iter().rfold(0, |size, &byte| size << 8 | u64::from(byte)));
        let mut copies = Copies {
            incoming: Vec::with_capacity(paths.len()),
            spare,
        };
        let mut verdicts = vec![0_u8; paths.len()];
        let mut tree = Tree::new(&self.mpi, leaders)?;
        for (at, (path, size_bytes)) in paths.iter().zip(sizes).enumerate() {
            if size_bytes == u64::MAX {
                copies.incoming.push(None); // the root has not got it
                continue;
            }
            copies.incoming.push(self.begin_copy(path, size_bytes));
            let mut reader = sources.get(at).map(Source::reader);
            for offset in (0..size_bytes).step_by(tree::SEGMENT_BYTES) {
                self.wait(interrupt)
                    .until(what, || tree.has_room(&mut |part| copies.write(part)))?;
                let mut part = copies.part(offset, size_bytes);
                let bytes = &mut part.bytes[..part.size_bytes];
                if let Some(reader) = &mut reader {
                    reader.read(bytes, offset);
                }
                let (start, length) = (bytes.as_mut_ptr(), bytes.len());
                // SAFETY: the bytes are the part's, wherever that is moved to.
                unsafe { tree.push(start, length, part)? };
                progress::advance(length as u64);
            }
            // Whether the copy is whole, the root knows.
            verdicts[at] = u8::from(reader.is_some_and(Reader::was_whole));
        }
        self.wait(interrupt)
            .until(what, || tree.is_over(&mut |part| copies.write(part)))?;
        let verdicts = self.broadcast_pieces(leaders, verdicts.leak(), what, interrupt)?;
        let finish = |(incoming, verdict): (Option<Incoming>, &u8)| match incoming {
            Some(incoming) if *verdict == 1 => incoming.finish().map(|()| true),
            _ => Ok(false),
        };
        copies.incoming.into_iter().zip(verdicts.iter()).map(finish).collect()
    }

    /// Begins the copy of a file in the node store, if there is one and it has room.
    fn begin_copy(&self, path: &Path, size_bytes: u64) -> Option<Incoming> {
        let begun = self.with_store(|store| store.receive(path, size_bytes))?;
        begun.map_err(|cause| log::debug!("{cause}")).ok()
    }
}

/// A part of a bundle: offset, size in bytes, CRC-32.
pub type Section = (u64, u64, u32);

/// Where the root has a file that is delivered: a file of its own, or a part of a bundle.
struct Source {
    /// None if it is not there.
    file: Option<Rc<File>>,
    offset: u64,
    size_bytes: Option<u64>,
    /// Of a part of a bundle.
    checksum: Option<u32>,
}

impl Source {
    /// Opens files, many at once, and has the system begin to read them.
    fn files(paths: &[PathBuf]) -> Vec<Self> {
        let opened = modules::in_parallel(paths, modules::threads_for(paths.len()), |path| {
            let file = File::open(path).ok()?;
            let size_bytes = State::of_open(&file).ok()?.size_bytes;
            // Advice that is not taken does no harm.
            let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::WillNeed);
            Some((file, size_bytes))
        });
        let source = |opened: Option<(File, u64)>| {
            let (file, size_bytes) = opened.unzip();
            Self {
                file: file.map(Rc::new),
                offset: 0,
                size_bytes,
                checksum: None,
            }
        };
        opened.into_iter().map(source).collect()
    }

    fn section(bundle: &Rc<File>, (offset, size_bytes, checksum): Section) -> Self {
        Self {
            file: Some(bundle.clone()),
            offset,
            size_bytes: Some(size_bytes),
            checksum: Some(checksum),
        }
    }

    fn reader(&self) -> Reader<'_> {
        Reader {
            source: self,
            whole: true,
            hasher: crc32fast::Hasher::new(),
        }
    }
}

/// The reading of a source from its beginning to its end.
struct Reader<'a> {
    source: &'a Source,
    whole: bool,
    hasher: crc32fast::Hasher,
}

impl Reader<'_> {
    fn read(&mut self, bytes: &mut [u8], offset: u64) {
        let place = self.source.offset + offset;
        self.whole = self.whole
            && self
                .source
                .file
                .as_ref()
                .is_some_and(|file| file.read_exact_at(bytes, place).is_ok());
        if self.source.checksum.is_some() {
            self.hasher.update(bytes);
        }
    }

    /// Whether all was read, and the file is what it was before.
    fn was_whole(self) -> bool {
        let file = self.source.file.as_ref();
        let size = || Some(State::of_open(file?).ok()?.size_bytes);
        self.whole
            && match self.source.checksum {
                Some(checksum) => self.hasher.finalize() == checksum,
                None => size() == self.source.size_bytes,
            }
    }
}

/// Copies that this host begins, one after another; None for those that it has no room for.
struct Copies<'a> {
    incoming: Vec<Option<Incoming>>,
    spare: &'a mut Vec<Box<[u8]>>,
}

/// A part of the copy with this number, on its way.
struct Part {
    copy: usize,
    offset: u64,
    size_bytes: usize,
    bytes: Box<[u8]>,
}

impl Copies<'_> {
    /// The part at this offset of the last copy, to be filled.
    fn part(&mut self, offset: u64, file_bytes: u64) -> Part {
        let new = || vec![0; tree::SEGMENT_BYTES].into_boxed_slice();
        let bytes = self.spare.pop().unwrap_or_else(new);
        Part {
            copy: self.incoming.len() - 1,
            offset,
            size_bytes: usize::try_from(file_bytes - offset)
                .unwrap_or(usize::MAX)
                .min(bytes.len()),
            bytes,
        }
    }

    fn write(&mut self, part: Part) {
        let copy = &mut self.incoming[part.copy];
        let written = copy
            .as_ref()
            .map(|copy| copy.write(&part.bytes[..part.size_bytes], part.offset));
        if let Some(Err(cause)) = written {
            log::debug!("{cause}");
            *copy = None;
        }
        self.spare.push(part.bytes);
    }
}
