//! What `importlib`'s own finder and loader would find and read, for many questions at once and by many threads.
//!
//! Only what is ordinary is answered here: folders, source with valid bytecode, extension modules. The rules are those
//! of `FileFinder.find_spec`, `PathFinder._get_spec` and `SourceFileLoader.get_code`. Whatever asks for more, a zip
//! file, bytecode to be compiled or checked by hash, a folder that cannot be read, is left to `importlib` itself.

use crate::elf::{self, Extension};
use crate::state::State;
use crate::{code, progress};
use rustix::fs::{Dir, FileType, Mode, OFlags, open};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::ops::Range;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

/// A thread that waits for a filesystem with 1 ms of latency needs company.
const THREADS: usize = 32;
/// Fewer questions than this per thread are not worth one.
const QUESTIONS_PER_THREAD: usize = 4;
const HEADER_BYTES: usize = 16;
/// Most bytecode is read with one call.
const READ_BYTES: usize = 64 << 10;

/// How this Python names and marks files.
pub struct Rules {
    /// The suffixes of extension modules, in the order in which they are tried.
    pub extension_suffixes: Vec<String>,
    /// The first bytes of valid bytecode.
    pub magic: Vec<u8>,
    /// What follows a module's name in the name of its bytecode: `.cpython-311.pyc`.
    pub bytecode_suffix: String,
    /// `sys.pycache_prefix`
    pub pycache_prefix: Option<OsString>,
}

/// A module's name, without the packages that it is in, and the folders to be searched.
pub struct Question {
    /// The last part of the module's full name.
    pub name: OsString,
    /// The parent's `__path__`, or `sys.path`.
    pub folders: Arc<Vec<OsString>>,
    /// Whether it is wanted what the module imports: an extension module is looked into.
    pub scans: bool,
}

/// The answer to a question.
pub enum Found {
    /// There is no such module.
    Missing,
    /// There are only folders without `__init__`: these.
    Namespace(Vec<OsString>),
    /// A file.
    Module(Module),
    /// `importlib` has to be asked.
    Unknown,
    /// This host cannot reach what others may: each rank has to ask `importlib`.
    OutOfReach,
}

/// The answers to many questions, in their order, and all code that was read for them, compressed.
pub enum Answers {
    /// A thread finds them.
    Awaited(JoinHandle<(Vec<Found>, Vec<u8>)>),
    /// They are there.
    There((Vec<Found>, Vec<u8>)),
}

impl Answers {
    /// Whether waiting takes no time.
    pub fn are_there(&self) -> bool {
        match self {
            Self::Awaited(thread) => thread.is_finished(),
            Self::There(_) => true,
        }
    }

    /// Waits for the answers. The thread has ended then.
    pub fn wait(self) -> (Vec<Found>, Vec<u8>) {
        match self {
            Self::Awaited(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
            Self::There(answers) => answers,
        }
    }
}

/// A module that is a file.
pub struct Module {
    /// The file.
    pub origin: OsString,
    /// The folder of a package, whose `__init__` this is.
    pub location: Option<OsString>,
    /// Source, with its code, or None for an extension module.
    pub source: Option<Source>,
}

/// A module's code, and the file that it was compiled from.
pub struct Source {
    /// Where the code, marshalled and compressed, is among all code.
    pub code: Range<usize>,
    /// When the source was modified.
    pub modified_ns: i64,
    /// The size of the source.
    pub size_bytes: i64,
}

/// What is known of a folder.
pub enum Folder {
    /// There is none.
    Absent,
    /// It cannot be listed, or is no folder.
    Other,
    /// This host cannot reach it.
    OutOfReach,
    /// Its names.
    Listed(Listing),
}

/// The names in a folder.
pub struct Listing {
    names: HashMap<OsString, FileType>,
    /// When the folder was modified, before it was listed.
    pub modified_ns: i64,
}

impl Listing {
    /// The names in this folder.
    pub fn names(&self) -> impl Iterator<Item = &OsStr> {
        self.names.keys().map(OsString::as_os_str)
    }

    fn is(&self, wanted: FileType, folder: &OsStr, name: &OsStr) -> Reached<bool> {
        Ok(match self.names.get(name) {
            None => false,
            Some(FileType::Symlink | FileType::Unknown) => {
                let state = within_reach(State::of(&joined(folder, name)))?;
                state.is_some_and(|state| state.file_type == wanted)
            }
            Some(&kind) => kind == wanted,
        })
    }
}

/// What was found, unless this host cannot reach it.
type Reached<T> = std::result::Result<T, OutOfReach>;

struct OutOfReach;

/// None after an error, if it says what every host would be told.
fn within_reach<T>(outcome: rustix::io::Result<T>) -> Reached<Option<T>> {
    const HOST_S_OWN: [Errno; 7] = [
        Errno::IO,
        Errno::STALE,
        Errno::TIMEDOUT,
        Errno::NOTCONN,
        Errno::SHUTDOWN,
        Errno::HOSTDOWN,
        Errno::REMOTEIO,
    ];
    match outcome {
        Ok(reached) => Ok(Some(reached)),
        Err(cause) if HOST_S_OWN.contains(&cause) => Err(OutOfReach),
        Err(_) => Ok(None),
    }
}

fn within_reach_of_std<T>(outcome: std::io::Result<T>) -> Reached<Option<T>> {
    within_reach(outcome.map_err(|cause| Errno::from_io_error(&cause).unwrap_or(Errno::INVAL)))
}

type Shared = Arc<OnceLock<Folder>>;

/// Answers questions, and remembers each folder that it has listed.
pub struct Searcher {
    rules: Rules,
    folders: Mutex<HashMap<OsString, Shared>>,
    extensions: Mutex<HashMap<PathBuf, Extension>>,
}

impl Searcher {
    /// A searcher that has seen nothing yet.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            folders: Mutex::new(HashMap::new()),
            extensions: Mutex::new(HashMap::new()),
        }
    }

    /// Begins to answer many questions, `beside` what this thread does; else, and where there may be no threads, it has
    /// done so when it returns.
    pub fn begin(self: &Arc<Self>, questions: Vec<Question>, beside: bool) -> Answers {
        let questions = Arc::new(questions);
        if beside && threads_for(usize::MAX) > 1 {
            let (searcher, asked) = (self.clone(), questions.clone());
            match std::thread::Builder::new().spawn(move || searcher.find_all(&asked)) {
                Ok(thread) => return Answers::Awaited(thread),
                Err(cause) => log::debug!("no thread to read with: {cause}"),
            }
        }
        Answers::There(self.find_all(&questions))
    }

    /// Answers many questions, in their order; with all code that was read for them, compressed.
    pub fn find_all(&self, questions: &[Question]) -> (Vec<Found>, Vec<u8>) {
        // One buffer, and large from the beginning: what threads have of their own, malloc keeps, 5 MB for scipy.
        let mut room = Vec::new();
        let _ = room.try_reserve(questions.len() * READ_BYTES / 4); // where that is too much, less may do
        let all_code = Mutex::new(room);
        let find = |question: &Question| {
            let found = self.find(question, &all_code).unwrap_or(Found::OutOfReach);
            progress::advance(1);
            found
        };
        let found = in_parallel(questions, threads_for(questions.len()), find);
        (found, all_code.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Lists folders that no question has led to yet.
    pub fn list_all(&self, folders: &[OsString]) {
        in_parallel(folders, threads_for(folders.len()), |folder| {
            self.folder(folder);
        });
    }

    /// Every folder that was listed so far, or looked for.
    pub fn seen(&self) -> Vec<(OsString, Shared)> {
        let folders = self.folders.lock().unwrap_or_else(PoisonError::into_inner);
        folders
            .iter()
            .map(|(path, folder)| (path.clone(), folder.clone()))
            .collect()
    }

    /// What was read of extension modules.
    pub fn extensions(&self) -> MutexGuard<'_, HashMap<PathBuf, Extension>> {
        self.extensions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn folder(&self, path: &OsStr) -> Shared {
        let folder = {
            let mut folders = self.folders.lock().unwrap_or_else(PoisonError::into_inner);
            match folders.get(path) {
                Some(folder) => folder.clone(),
                None => folders.entry(path.to_owned()).or_default().clone(),
            }
        };
        folder.get_or_init(|| list(path));
        folder
    }

    fn find(&self, question: &Question, all_code: &Mutex<Vec<u8>>) -> Reached<Found> {
        let mut portions = Vec::new();
        for folder in question.folders.iter() {
            if !folder.as_bytes().starts_with(b"/") || folder.as_bytes().ends_with(b"/") {
                return Ok(Found::Unknown);
            }
            let shared = self.folder(folder);
            let listing = match shared.get() {
                Some(Folder::Listed(listing)) => listing,
                Some(Folder::Absent) => continue,
                Some(Folder::OutOfReach) => return Err(OutOfReach),
                _ => return Ok(Found::Unknown),
            };
            let mut is_portion = false;
            if listing.is(FileType::Directory, folder, &question.name)? {
                let package = joined(folder, &question.name);
                let shared = self.folder(package.as_os_str());
                let inner = match shared.get() {
                    Some(Folder::Listed(inner)) => inner,
                    Some(Folder::OutOfReach) => return Err(OutOfReach),
                    _ => return Ok(Found::Unknown),
                };
                if let Some(found) = self.file(
                    inner,
                    package.as_os_str(),
                    OsStr::new("__init__"),
                    true,
                    question.scans,
                    all_code,
                )? {
                    return Ok(found);
                }
                is_portion = true;
            }
            if let Some(found) = self.file(listing, folder, &question.name, false, question.scans, all_code)? {
                return Ok(found);
            }
            if is_portion {
                portions.push(joined(folder, &question.name).into_os_string());
            }
        }
        Ok(if portions.is_empty() {
            Found::Missing
        } else {
            Found::Namespace(portions)
        })
    }

    /// The file in this folder that is the module, or the package's `__init__`.
    fn file(
        &self,
        listing: &Listing,
        folder: &OsStr,
        stem: &OsStr,
        is_package: bool,
        scans: bool,
        all_code: &Mutex<Vec<u8>>,
    ) -> Reached<Option<Found>> {
        let with = |suffix: &str| {
            let mut name = stem.to_owned();
            name.push(suffix);
            name
        };
        let location = is_package.then(|| folder.to_owned());
        for suffix in &self.rules.extension_suffixes {
            let name = with(suffix);
            if listing.is(FileType::RegularFile, folder, &name)? {
                let path = joined(folder, &name);
                if scans {
                    let extension = elf::extension(&path);
                    self.extensions().insert(path.clone(), extension);
                }
                let (origin, source) = (path.into_os_string(), None);
                return Ok(Some(Found::Module(Module {
                    origin,
                    location,
                    source,
                })));
            }
        }
        let name = with(".py");
        if listing.is(FileType::RegularFile, folder, &name)? {
            let origin = joined(folder, &name).into_os_string();
            let Some(source) = self.read(&origin, folder, stem, all_code)? else {
                return Ok(Some(Found::Unknown));
            };
            let source = Some(source);
            return Ok(Some(Found::Module(Module {
                origin,
                location,
                source,
            })));
        }
        Ok(listing.names.contains_key(&with(".pyc")).then_some(Found::Unknown))
    }

    /// The valid bytecode of a source file: `SourceLoader.get_code` by modification time.
    fn read(&self, origin: &OsStr, folder: &OsStr, stem: &OsStr, all_code: &Mutex<Vec<u8>>) -> Reached<Option<Source>> {
        let Some(state) = within_reach(State::of(Path::new(origin)))? else {
            return Ok(None);
        };
        let mut bytecode = match &self.rules.pycache_prefix {
            Some(prefix) => {
                let mut path = prefix.clone();
                path.push(folder);
                PathBuf::from(path)
            }
            None => joined(folder, OsStr::new("__pycache__")),
        };
        let mut name = stem.to_owned();
        name.push(&self.rules.bytecode_suffix);
        bytecode.push(name);
        let mut first = [0; READ_BYTES];
        let mut rest = Vec::new();
        let Some(read) = within_reach_of_std(read_file(&bytecode, &mut first, &mut rest))? else {
            return Ok(None);
        };
        let Some((header, start)) = first[..read].split_at_checked(HEADER_BYTES) else {
            return Ok(None);
        };
        let expected = [
            &self.rules.magic[..],
            &[0; 4],
            &state.modified_s().to_le_bytes()[..4],
            &state.size_bytes.to_le_bytes()[..4],
        ]
        .concat();
        if header != expected {
            return Ok(None);
        }
        let compressed = if rest.is_empty() {
            code::compress(start)
        } else {
            code::compress(&[start, &rest].concat())
        };
        let mut all_code = all_code.lock().unwrap_or_else(PoisonError::into_inner);
        let at = all_code.len();
        all_code.extend_from_slice(&compressed);
        Ok(Some(Source {
            code: at..all_code.len(),
            modified_ns: state.modified_ns,
            size_bytes: state.size_bytes.cast_signed(),
        }))
    }
}

/// Reads a file. Return how much of it is in `first`; what does not fit is in `rest`.
fn read_file(path: &Path, first: &mut [u8; READ_BYTES], rest: &mut Vec<u8>) -> std::io::Result<usize> {
    let mut file = std::fs::File::open(path)?;
    let mut read = 0;
    while read < READ_BYTES {
        match file.read(&mut first[read..])? {
            0 => return Ok(read),
            more => read += more,
        }
    }
    file.take(u64::MAX).read_to_end(rest)?; // of a file itself, it would ask the size first: an operation
    Ok(read)
}

/// (Time of modification in ns, size in bytes) of files and folders.
pub fn states(paths: &[OsString]) -> Vec<Option<(i64, i64)>> {
    in_parallel(paths, threads_for(paths.len()), |path| {
        let state = State::of(Path::new(path)).ok()?;
        Some((state.modified_ns, state.size_bytes.cast_signed()))
    })
}

/// So many threads are worth it. Each takes 66 MB of addresses for itself, and dies where there are none: so none where
/// these are limited.
pub fn threads_for(questions: usize) -> usize {
    match getrlimit(Resource::As).current {
        Some(_) => 1,
        None => THREADS.min(questions / QUESTIONS_PER_THREAD),
    }
}

fn list(path: &OsStr) -> Folder {
    match within_reach(try_list(path)) {
        Ok(Some(folder)) => folder,
        Ok(None) => Folder::Other,
        Err(OutOfReach) => Folder::OutOfReach,
    }
}

fn try_list(path: &OsStr) -> rustix::io::Result<Folder> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = match open(Path::new(path), flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(Folder::Absent),
        folder => folder?,
    };
    let state = State::of_open(&folder)?;
    let mut names = HashMap::new();
    for entry in Dir::new(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.insert(OsString::from_vec(name.to_vec()), entry.file_type());
        }
    }
    Ok(Folder::Listed(Listing {
        names,
        modified_ns: state.modified_ns,
    }))
}

fn joined(folder: &OsStr, name: &OsStr) -> PathBuf {
    let mut path = folder.to_owned();
    path.push("/");
    path.push(name);
    PathBuf::from(path)
}

/// What `work` makes of each item, in their order. The threads have ended when this returns: a program that forks
/// must not be told that it has threads.
pub fn in_parallel<T: Sync, R: Send>(items: &[T], threads: usize, work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    use rayon::prelude::*;
    let one_after_another = || items.iter().map(&work).collect();
    if threads < 2 {
        return one_after_another();
    }
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_scoped(
            |thread| thread.run(),
            |pool| pool.install(|| items.par_iter().with_max_len(1).map(&work).collect()),
        )
        .unwrap_or_else(|cause| {
            log::debug!("no threads to read with: {cause}");
            one_after_another()
        })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    fn searcher() -> Searcher {
        Searcher::new(Rules {
            extension_suffixes: vec![".so".to_owned()],
            magic: b"\x01\x02\r\n".to_vec(),
            bytecode_suffix: ".python.pyc".to_owned(),
            pycache_prefix: None,
        })
    }

    fn find(name: &OsStr, folder: &Path) -> (Found, Vec<u8>) {
        let (name, folders) = (name.to_owned(), Arc::new(vec![folder.as_os_str().to_owned()]));
        let scans = false;
        let (mut found, code) = searcher().find_all(&[Question { name, folders, scans }]);
        (found.remove(0), code)
    }

    proptest! {
        #[test]
        fn bytecode_is_used_whole_or_left_to_importlib(
            rest in prop::collection::vec(any::<u8>(), 0..40),
            damages in prop::collection::vec((0..56_usize, any::<u8>()), 0..3),
            length in prop_oneof![3 => Just(usize::MAX), 1 => 0..56_usize],
        ) {
            let folder = tempfile::tempdir().unwrap();
            let source = folder.path().join("module.py");
            fs::write(&source, "text").unwrap();
            let modified = u32::try_from(State::of(Path::new(&source)).unwrap().modified_s()).unwrap();
            let header = [*b"\x01\x02\r\n", [0; 4], modified.to_le_bytes(), 4_u32.to_le_bytes()].concat();
            let mut bytes = [header.as_slice(), &rest].concat();
            for (place, value) in damages {
                if let Some(byte) = bytes.get_mut(place) {
                    *byte = value;
                }
            }
            bytes.truncate(length);
            fs::create_dir(folder.path().join("__pycache__")).unwrap();
            fs::write(folder.path().join("__pycache__/module.python.pyc"), &bytes).unwrap();
            match (find(OsStr::new("module"), folder.path()), bytes.strip_prefix(header.as_slice())) {
                ((Found::Module(module), code), Some(expected)) => {
                    let code = &code[module.source.unwrap().code];
                    let mut decompressed = vec![0; code::size_bytes(code).unwrap()];
                    code::decompress(code, &mut decompressed).unwrap();
                    prop_assert_eq!(decompressed, expected);
                }
                ((Found::Unknown, _), None) => {}
                (_, expected) => panic!("{expected:?}"),
            }
        }

        #[test]
        fn names_of_any_bytes_are_listed_and_found(
            names in prop::collection::btree_set("[^/\\x00]{1,9}".prop_map(String::into_bytes), 1..9),
            spoilt: u8,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let spoilt = spoilt.max(0x80);
            let names: Vec<_> = names.into_iter().map(|name| OsString::from_vec([&name[..], &[spoilt]].concat())).collect();
            for name in &names {
                let mut file = name.clone();
                file.push(".so");
                fs::write(folder.path().join(file), "").unwrap();
            }
            for name in &names {
                let (found, _) = find(name, folder.path());
                prop_assert!(matches!(found, Found::Module(module) if module.source.is_none()));
            }
            prop_assert!(matches!(find(OsStr::new("absent"), folder.path()).0, Found::Missing));
            let searcher = searcher();
            searcher.list_all(&[folder.path().as_os_str().to_owned()]);
            let (_, listed) = searcher.seen().remove(0);
            let Some(Folder::Listed(listing)) = listed.get() else { panic!("it is not listed") };
            prop_assert_eq!(listing.names().count(), names.len());
        }
    }
}
