//! `mpiimport._core`: what Python asks of the core. The only file that knows Python.
//!
//! The functions carry `str`, `bytes`, `int`, `float` and tuples. Each that may wait releases the GIL and lets
//! signals through.

use crate::abi::{self, Family};
use crate::bundle;
use crate::error::{self, Error};
use crate::host;
use crate::modules::{self, Answers, Folder, Found, Question, Searcher};
use crate::profile::{self, Profile};
use crate::progress;
use crate::trust::{self, Refusal};
use crate::world::{self, World};
use crate::{closure, code, elf, libmpi, report, state, store};
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyDict, PyFrozenSet, PyTuple};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString, c_int};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

fn runtime_error(cause: Error) -> PyErr {
    PyRuntimeError::new_err(cause.to_string())
}

fn os_error(cause: Error) -> PyErr {
    PyOSError::new_err(cause.to_string())
}

fn joined() -> PyResult<&'static World> {
    world::joined()
        .filter(|world| world.is_active())
        .ok_or_else(|| PyRuntimeError::new_err("this process is not connected to the other ranks"))
}

/// Runs a wait without the GIL. A signal handler that raises ends the wait with its exception.
fn waiting<T: Send>(
    py: Python<'_>,
    wait: impl FnOnce(&mut world::Interrupt) -> error::Result<T> + Send,
) -> PyResult<T> {
    let mut raised = None;
    let result = py.detach(|| {
        wait(&mut || {
            Python::attach(|py| py.check_signals()).map_err(|cause| {
                raised = Some(cause);
                Error::new("interrupted")
            })
        })
    });
    match (result, raised) {
        (_, Some(cause)) => Err(cause),
        (result, None) => result.map_err(runtime_error),
    }
}

/// Join the other ranks over MPI. Collective.
#[pyfunction]
#[pyo3(signature = (libraries, *, make_global, launcher, thread_level, timeout_s, verbose))]
#[allow(clippy::too_many_arguments)]
fn connect<'py>(
    py: Python<'py>,
    libraries: Vec<String>,
    make_global: bool,
    launcher: Option<&str>,
    thread_level: usize,
    timeout_s: f64,
    verbose: bool,
) -> PyResult<Bound<'py, PyDict>> {
    let options = world::Options {
        libraries,
        global: make_global,
        launcher: launcher.map(family).transpose()?,
        thread_level,
        timeout: Duration::try_from_secs_f64(timeout_s).map_err(|cause| PyValueError::new_err(cause.to_string()))?,
    };
    if verbose {
        log_to_stderr();
    }
    let first = world::joined().is_none();
    let began = Instant::now();
    let opened = py.detach(|| world::open_library(&options)).map_err(os_error)?;
    let find_libmpi = began.elapsed();
    let world = waiting(py, |interrupt| world::connect(opened, &options, interrupt))?;
    let start_mpi = began.elapsed() - find_libmpi;
    if first {
        call_at_exit()?;
    }
    let found = PyDict::new(py);
    found.set_item("rank", world.rank)?;
    found.set_item("size", world.size)?;
    found.set_item("local_rank", world.local_rank)?;
    found.set_item("local_size", world.local_size)?;
    found.set_item("thread_level", world.thread_level)?;
    found.set_item("host", host::name())?;
    found.set_item("library", world.library.as_os_str())?;
    found.set_item("library_version", world.library_version())?;
    found.set_item("abi", world.abi_name())?;
    let seconds = PyDict::new(py);
    seconds.set_item("find_libmpi", find_libmpi.as_secs_f64())?;
    seconds.set_item("start_mpi", start_mpi.as_secs_f64())?;
    found.set_item("seconds", seconds)?;
    Ok(found)
}

/// What `find_libmpi` finds: the candidate that led to it, the file, its ABI and what it says of its version.
type FoundLibrary = (Option<String>, OsString, &'static str, String);

/// Open the library that `connect` would use, and start nothing. It, or None, and the candidates that were refused.
#[pyfunction]
#[pyo3(signature = (libraries, *, launcher))]
fn find_libmpi(
    py: Python<'_>,
    libraries: Vec<String>,
    launcher: Option<&str>,
) -> PyResult<(Option<FoundLibrary>, Vec<libmpi::Refused>)> {
    let launcher = launcher.map(family).transpose()?;
    let (opened, refused) = py.detach(|| libmpi::search(&libraries, launcher, false));
    let found = opened.map(|opened| {
        let (abi, version) = (opened.mpi.abi().family.name(), opened.mpi.library_version());
        (opened.candidate, opened.path.into_os_string(), abi, version)
    });
    Ok((found, refused))
}

fn call_at_exit() -> PyResult<()> {
    // SAFETY: a plain function that touches no Python, as Py_AtExit requires.
    match unsafe { ffi::Py_AtExit(Some(world::at_exit)) } {
        0 => Ok(()),
        _ => Err(PyRuntimeError::new_err(
            "the interpreter has no room for one more exit function",
        )),
    }
}

fn family(name: &str) -> PyResult<Family> {
    [Family::Mpich, Family::OpenMpi, Family::Standard]
        .into_iter()
        .find(|family| family.name() == name)
        .ok_or_else(|| PyValueError::new_err(format!("`{name}` is no family of MPI libraries")))
}

fn log_to_stderr() {
    struct Stderr;
    impl log::Log for Stderr {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }
        fn log(&self, record: &log::Record<'_>) {
            eprintln!("mpiimport: {}", record.args());
        }
        fn flush(&self) {}
    }
    // An error means that a logger is set already.
    if log::set_boxed_logger(Box::new(Stderr)).is_ok() {
        log::set_max_level(log::LevelFilter::Debug);
    }
}

/// Give every rank the root's bytes. Collective; `what` says in messages what is waited for.
#[pyfunction]
fn broadcast<'py>(py: Python<'py>, data: Option<&[u8]>, what: &str) -> PyResult<Bound<'py, PyBytes>> {
    let world = joined()?;
    let received = waiting(py, |interrupt| world.broadcast(data, what, interrupt))?;
    bytes(py, &received)
}

/// A copy of these bytes. `PyBytes::new` panics where there is no memory for them.
fn bytes<'py>(py: Python<'py>, data: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    PyBytes::new_with(py, data.len(), |place| {
        place.copy_from_slice(data);
        Ok(())
    })
}

/// Give every host the root's bytes, in parts, in memory that its ranks share until they end. Collective.
#[pyfunction]
fn broadcast_shared<'py>(
    py: Python<'py>,
    parts: Option<Vec<PyBackedBytes>>,
    what: &str,
) -> PyResult<Bound<'py, PyAny>> {
    let world = joined()?;
    let parts: Option<Vec<&[u8]>> = parts.as_ref().map(|parts| parts.iter().map(|part| &part[..]).collect());
    let received: &'static [u8] = waiting(py, |interrupt| {
        world.broadcast_shared(parts.as_deref(), what, interrupt)
    })?;
    let size = ffi::Py_ssize_t::try_from(received.len()).map_err(|cause| PyValueError::new_err(cause.to_string()))?;
    // SAFETY: the memory is valid and unchanged until the process ends; PyBUF_READ is 0x100.
    unsafe {
        let view = ffi::PyMemoryView_FromMemory(received.as_ptr().cast_mut().cast(), size, 0x100);
        Bound::from_owned_ptr_or_err(py, view)
    }
}

/// Collect equally many bytes of each rank on the root, which gets a list; others get None. Collective.
#[pyfunction]
fn gather<'py>(py: Python<'py>, data: &[u8], what: &str) -> PyResult<Option<Vec<Bound<'py, PyBytes>>>> {
    let world = joined()?;
    let received = waiting(py, |interrupt| world.gather(data, what, interrupt))?;
    if world.rank != 0 {
        return Ok(None);
    }
    let size_bytes = data.len().max(1);
    let each = received.chunks(size_bytes).map(|chunk| bytes(py, chunk));
    each.collect::<PyResult<_>>().map(Some)
}

/// Make this host's node store in the first usable of these folders. Collective. Its path, or why there is none.
#[pyfunction]
fn store_open(py: Python<'_>, folders: Vec<PathBuf>) -> PyResult<(Option<OsString>, Option<String>)> {
    let world = joined()?;
    let problem = waiting(py, |interrupt| world.open_store(&folders, interrupt))?;
    Ok((world.with_store(|store| store.path().as_os_str().to_owned()), problem))
}

/// Why no node store can be made in this folder, or None.
#[pyfunction]
fn store_problem(py: Python<'_>, folder: PathBuf) -> Option<String> {
    py.detach(|| store::Store::check(&folder).err().map(|cause| cause.to_string()))
}

/// Make links to files in this host's node store, beside the copies of their siblings.
#[pyfunction]
fn store_link(py: Python<'_>, originals: Vec<PathBuf>) -> PyResult<()> {
    let Some(world) = world::joined() else { return Ok(()) };
    py.detach(|| {
        world
            .with_store(|store| originals.iter().try_for_each(|original| store.link(original)))
            .unwrap_or(Ok(()))
    })
    .map_err(os_error)
}

/// The types of the filesystems that files are on, as `statfs` has them; None where that cannot be said.
#[pyfunction]
fn filesystem_types(py: Python<'_>, paths: Vec<PathBuf>) -> Vec<Option<u64>> {
    py.detach(|| state::filesystem_types(&paths))
}

/// Wait until `key` is answered, or ours to answer: the answer, True for ours, None after `timeout_s` or without store.
#[pyfunction]
fn store_claim(py: Python<'_>, key: &str, timeout_s: f64) -> PyResult<Option<Py<PyAny>>> {
    let timeout = Duration::try_from_secs_f64(timeout_s).map_err(|cause| PyValueError::new_err(cause.to_string()))?;
    let Some(world) = world::joined() else { return Ok(None) };
    // The store is locked for each try and not for the wait, so that other threads get their turn.
    let outcome = py.detach(|| -> error::Result<Option<(store::Claim, Option<Vec<u8>>)>> {
        let mut absent = false;
        let claim = store::claim_within(timeout, || {
            world.with_store(|store| store.claim(key)).unwrap_or_else(|| {
                absent = true;
                Ok(store::Claim::Answered)
            })
        })?;
        if absent {
            return Ok(None);
        }
        let answer = match claim {
            store::Claim::Answered => world.with_store(|store| store.get(key)).transpose()?.flatten(),
            _ => None,
        };
        Ok(Some((claim, answer)))
    });
    match outcome.map_err(os_error)? {
        Some((store::Claim::Ours, _)) => Ok(Some(true.into_pyobject(py)?.to_owned().into_any().unbind())),
        Some((store::Claim::Answered, Some(answer))) => Ok(Some(bytes(py, &answer)?.into_any().unbind())),
        _ => Ok(None),
    }
}

/// Put the answer that was claimed, or give up the claim with None.
#[pyfunction]
fn store_put(py: Python<'_>, key: &str, answer: Option<&[u8]>) -> PyResult<()> {
    let Some(world) = world::joined() else { return Ok(()) };
    py.detach(|| {
        world.with_store(|store| match answer {
            Some(answer) => store.put(key, answer),
            None => {
                store.release(key);
                Ok(())
            }
        })
    })
    .unwrap_or(Ok(()))
    .map_err(os_error)
}

/// Copy files of the root to the node store of each host, beside links: for each, whether this host has it. Collective.
#[pyfunction]
fn deliver_files(
    py: Python<'_>,
    paths: Vec<PathBuf>,
    links: Vec<PathBuf>,
    bundle: Option<(Bound<'_, Bundle>, Vec<world::Section>)>,
    what: &str,
) -> PyResult<Vec<bool>> {
    let world = joined()?;
    let bundle = bundle
        .as_ref()
        .map(|(bundle, sections)| (&bundle.get().0.file, &sections[..]));
    waiting(py, |interrupt| {
        world.deliver_files(&paths, &links, bundle, what, interrupt)
    })
}

/// `OSError`, or `ValueError` with the rest of a sentence that begins with the file.
fn refusal_error(py: Python<'_>, refusal: Refusal, path: PathBuf) -> PyErr {
    match refusal {
        Refusal::Unusable(why) => PyValueError::new_err(why),
        Refusal::System(cause) => {
            let number = cause.raw_os_error().unwrap_or(libc::EIO);
            match py
                .import("posix")
                .and_then(|posix| posix.call_method1("strerror", (number,)))
            {
                Ok(reason) => PyOSError::new_err((number, reason.unbind(), path.into_os_string())), // a path would be a `pathlib.Path`
                Err(failure) => failure,
            }
        }
    }
}

/// A bundle that only these users can have written.
#[pyclass(frozen)]
struct Bundle(bundle::Bundle);

#[pymethods]
impl Bundle {
    #[new]
    fn new(py: Python<'_>, path: PathBuf, owners: Vec<u32>) -> PyResult<Self> {
        let opened = py.detach(|| bundle::Bundle::open(&path, &owners));
        opened.map(Self).map_err(|refusal| refusal_error(py, refusal, path))
    }

    #[getter]
    fn table<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.table)
    }

    #[getter]
    fn start(&self) -> u64 {
        self.0.start
    }

    #[getter]
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes
    }

    /// A section: its bytes at an offset.
    fn read<'py>(&self, py: Python<'py>, offset: u64, size_bytes: u64, checksum: u32) -> PyResult<Bound<'py, PyBytes>> {
        let refused = |refusal| refusal_error(py, refusal, PathBuf::new());
        let size = self.0.room(offset, size_bytes).map_err(refused)?;
        PyBytes::new_with(py, size, |bytes| self.0.read(offset, checksum, bytes).map_err(refused))
    }
}

/// A file that only this user can have written.
#[pyfunction]
fn read_own<'py>(py: Python<'py>, path: PathBuf) -> PyResult<Bound<'py, PyBytes>> {
    let read = py.detach(|| {
        let mut content = Vec::new();
        trust::open_own(&path, &[rustix::process::geteuid().as_raw()])?.read_to_end(&mut content)?;
        Ok(content)
    });
    match read {
        Ok(content) => Ok(PyBytes::new(py, &content)),
        Err(refusal) => Err(refusal_error(py, refusal, path)),
    }
}

/// Marshalled code as it travels: compressed.
#[pyfunction]
fn compress<'py>(py: Python<'py>, code: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    bytes(py, &code::compress(code))
}

/// The marshalled code that was compressed.
#[pyfunction]
fn decompress<'py>(py: Python<'py>, compressed: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    let size_bytes = code::size_bytes(compressed).map_err(runtime_error)?;
    PyBytes::new_with(py, size_bytes, |place| {
        code::decompress(compressed, place).map_err(runtime_error)
    })
}

/// The CRC-32 of bytes, or of what `before` is the CRC-32 of with these bytes after it.
#[pyfunction]
#[pyo3(signature = (data, before = 0))]
fn crc32(py: Python<'_>, data: &[u8], before: u32) -> u32 {
    py.detach(|| {
        let mut hasher = crc32fast::Hasher::new_with_initial(before);
        hasher.update(data);
        hasher.finalize()
    })
}

/// (Time of modification in ns, size in bytes) of files and folders, None for what is not there.
#[pyfunction]
fn states(py: Python<'_>, paths: Vec<OsString>) -> Vec<Option<(i64, i64)>> {
    py.detach(|| modules::states(&paths))
}

/// Copy files to this host's node store, where they are not there yet: for each, whether it is there.
#[pyfunction]
fn store_copy(py: Python<'_>, paths: Vec<PathBuf>) -> Vec<bool> {
    let Some(world) = world::joined() else {
        return vec![false; paths.len()];
    };
    py.detach(|| {
        let copy = |path: &PathBuf| {
            world.with_store(|store| {
                store.has_copy(path) || store.copy(path).map_err(|cause| log::debug!("{cause}")).is_ok()
            })
        };
        paths.iter().map(|path| copy(path).unwrap_or(false)).collect()
    })
}

/// Finds and reads modules as `importlib` would, many at once; see `rust/src/modules.rs`.
#[pyclass(frozen)]
struct Modules(Arc<Searcher>);

#[pymethods]
impl Modules {
    /// How this Python names and marks files.
    #[new]
    fn new(
        extension_suffixes: Vec<String>,
        magic: Vec<u8>,
        bytecode_suffix: String,
        pycache_prefix: Option<OsString>,
    ) -> Self {
        Self(Arc::new(Searcher::new(modules::Rules {
            extension_suffixes,
            magic,
            bytecode_suffix,
            pycache_prefix,
        })))
    }

    /// Begins to answer questions: for each (folders, names, scans), for each of the names. If it scans, it looks into
    /// extension modules. Unless it is to be done `beside` what the caller does, they are answered when this returns.
    #[pyo3(signature = (questions, *, beside = false))]
    fn find(&self, py: Python<'_>, questions: Vec<(Vec<OsString>, Vec<OsString>, bool)>, beside: bool) -> Finding {
        let each = questions.into_iter().flat_map(|(folders, names, scans)| {
            let folders = Arc::new(folders);
            names.into_iter().map(move |name| Question {
                name,
                folders: folders.clone(),
                scans,
            })
        });
        let answers = py.detach(|| self.0.begin(each.collect(), beside));
        Finding(Mutex::new(Some(answers)))
    }

    /// What is known of each folder that was looked at: (time of modification in ns, first parts of its names), with
    /// None and none for one that is not there.
    fn folders<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let known = PyDict::new(py);
        for (path, folder) in self.0.seen() {
            match folder.get() {
                Some(Folder::Absent) => known.set_item(path, (None::<i64>, PyFrozenSet::empty(py)?))?,
                Some(Folder::Listed(listing)) => {
                    let stem = |name: &OsStr| OsStr::from_bytes(first_part(name.as_bytes())).to_owned();
                    let stems = PyFrozenSet::new(py, listing.names().map(stem))?;
                    known.set_item(path, (listing.modified_ns, stems))?;
                }
                _ => {}
            }
        }
        Ok(known)
    }

    /// Dotted names among the constants of an extension module that was looked into: maybe of what it imports.
    fn names_in(&self, origin: PathBuf) -> Vec<String> {
        self.0
            .extensions()
            .get(&origin)
            .map_or_else(Vec::new, |found| found.names.clone())
    }

    /// Lists folders that no question has led to.
    fn list(&self, py: Python<'_>, folders: Vec<OsString>) {
        py.detach(|| self.0.list_all(&folders));
    }
}

/// The answers to questions, which are found in the background.
#[pyclass(frozen)]
struct Finding(Mutex<Option<Answers>>);

#[pymethods]
impl Finding {
    /// Whether waiting takes no time.
    fn is_done(&self) -> bool {
        let answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        answers.as_ref().is_none_or(Answers::are_there)
    }

    /// What was found, or None for `importlib`, question after question; and all code, compressed. Once.
    fn wait<'py>(&self, py: Python<'py>) -> PyResult<(Vec<Option<Fields>>, Bound<'py, PyBytes>)> {
        let answers = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let answers = answers.ok_or_else(|| PyRuntimeError::new_err("the answers were taken before"))?;
        let (found, code) = py.detach(|| answers.wait());
        Ok((found.into_iter().map(as_fields).collect(), bytes(py, &code)?))
    }
}

fn first_part(name: &[u8]) -> &[u8] {
    name.split(|&byte| byte == b'.').next().unwrap_or(name)
}

/// What was found: its kind, origin, locations, where its code begins and ends, and the source's (time of modification in ns, size).
type Fields = (
    &'static str,
    Option<OsString>,
    Option<Vec<OsString>>,
    Option<(usize, usize)>,
    Option<(i64, i64)>,
);

fn as_fields(found: Found) -> Option<Fields> {
    Some(match found {
        Found::Unknown => return None,
        Found::OutOfReach => ("local", None, None, None, None),
        Found::Missing => ("missing", None, None, None, None),
        Found::Namespace(portions) => ("namespace", None, Some(portions), None, None),
        Found::Module(module) => {
            let locations = module.location.map(|location| vec![location]);
            match module.source {
                None => ("extension", Some(module.origin), locations, None, None),
                Some(source) => {
                    let state = (source.modified_ns, source.size_bytes);
                    let code = (source.code.start, source.code.end);
                    ("source", Some(module.origin), locations, Some(code), Some(state))
                }
            }
        }
    })
}

/// From now on, each rank takes note of what it asks. The root says where that is kept: the file, what stands before the
/// questions, and the lines of earlier runs. Collective.
#[pyfunction]
#[pyo3(signature = (path, header, earlier, *, speaks))]
fn take_notes(path: Option<PathBuf>, header: &[u8], earlier: &[u8], speaks: bool) -> PyResult<()> {
    let (header, earlier) = (header.to_vec(), earlier.to_vec());
    let profile = path.map(|path| Profile {
        path,
        header,
        earlier,
        speaks,
    });
    match (world::joined(), profile) {
        (Some(world), profile) => world.take_notes(profile),
        (None, Some(profile)) => {
            profile.take_notes_alone();
            call_at_exit()?;
        }
        (None, None) => {}
    }
    Ok(())
}

/// From now on, show the steps of the start that take long.
#[pyfunction]
fn show_progress() {
    progress::begin();
}

/// Show this step: what rank 0 does, with so many modules or bytes, 0 if nobody knows.
#[pyfunction]
#[pyo3(signature = (what, *, modules = None, size_bytes = None))]
fn next_step(what: &str, modules: Option<u64>, size_bytes: Option<u64>) {
    match size_bytes {
        Some(total) => progress::step(what, "MB", 1_000_000, total),
        None => progress::step(what, "modules", 1, modules.unwrap_or(0)),
    }
}

/// Show nothing any more.
#[pyfunction]
fn hide_progress(py: Python<'_>) {
    py.detach(progress::end);
}

/// Take note of a question.
#[pyfunction]
fn note(question: &[u8]) {
    profile::note(question);
}

/// From now on, this process records for the report: rows, and so many sums. On the root, `command` makes the report at
/// the end, of `header` and of what was recorded.
#[pyfunction]
fn report_start(sums: usize, command: Option<Vec<OsString>>, header: &[u8]) -> PyResult<()> {
    report::start(sums, command.map(|command| (command, header.to_vec())));
    if world::joined().is_none() {
        call_at_exit()?;
    }
    Ok(())
}

/// Record a row for the report, and what the sums of this process are with it.
#[pyfunction]
fn report_record(row: &[u8], sums: Vec<f64>) {
    report::record(row, &sums);
}

/// The libraries that each of these files needs, as (path, soname or None), each after those that it needs itself.
#[pyfunction]
#[pyo3(signature = (files, library_path, system, known = None))]
fn closures(
    py: Python<'_>,
    files: Vec<PathBuf>,
    library_path: Vec<PathBuf>,
    system: Vec<PathBuf>,
    known: Option<&Modules>,
) -> Vec<Vec<(OsString, Option<String>)>> {
    py.detach(|| {
        let search = closure::Search {
            library_path,
            system,
            loaded: closure::loaded_names(),
        };
        let read = known.map_or_else(HashMap::new, |modules| {
            let extensions = modules.0.extensions();
            extensions
                .iter()
                .map(|(path, found)| (path.clone(), found.dynamic.clone()))
                .collect()
        });
        let mut closures = closure::Closures::new(search, read);
        closures.read_ahead(&files);
        let as_tuple = |library: closure::Library| (library.path.into_os_string(), library.soname);
        files
            .iter()
            .map(|file| closures.of(file).into_iter().map(as_tuple).collect())
            .collect()
    })
}

/// Load a library, unless one with its soname is loaded: what needs that name then finds it.
#[pyfunction]
fn preload(py: Python<'_>, path: PathBuf, soname: Option<&str>, flags: c_int) -> PyResult<()> {
    py.detach(|| closure::preload(&path, soname, flags)).map_err(os_error)
}

/// Whether MPI may be spoken: connected, not in a forked child, and MPI_Finalize has not begun.
#[pyfunction]
fn is_active() -> bool {
    world::joined().is_some_and(World::is_active)
}

/// Whether this is the first to ask of the ranks on this host: the one to say what all of them could.
#[pyfunction]
fn is_first_on_host() -> bool {
    host::is_first_to_end()
}

/// Abort the job with `status`: when the interpreter ends, or after `grace_s` if it does not by then; 0 is at once.
#[pyfunction]
fn abort(py: Python<'_>, status: c_int, grace_s: f64) -> PyResult<()> {
    let grace = Duration::try_from_secs_f64(grace_s).map_err(|cause| PyValueError::new_err(cause.to_string()))?;
    if let Some(world) = world::joined() {
        py.detach(|| {
            if grace.is_zero() {
                world.abort_now(status);
            } else {
                world.abort_at_exit(status, grace);
            }
        });
    }
    Ok(())
}

/// The names in DT_NEEDED of an ELF file, and the folders of its DT_RUNPATH or DT_RPATH.
#[pyfunction]
fn needed(py: Python<'_>, path: PathBuf) -> PyResult<(Vec<String>, Vec<String>)> {
    let dynamic = py.detach(|| elf::dynamic(&path)).map_err(os_error)?;
    let search_path = dynamic.search_path().to_vec();
    Ok((dynamic.needed, search_path))
}

/// Whether a file is an ELF file that ends before its last segment does: loading it would end in a signal.
#[pyfunction]
fn is_truncated(py: Python<'_>, path: PathBuf) -> bool {
    py.detach(|| elf::is_truncated(&path))
}

/// Give memory that is free back to the system.
#[pyfunction]
fn release_memory(py: Python<'_>) {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes the locks that it needs; no argument can be wrong.
    py.detach(|| unsafe { libc::malloc_trim(0) });
}

/// A copy of `sys.flags` with `no_site` 0: what plain Python has, and what its children inherit.
#[pyfunction]
fn flags_with_site<'py>(py: Python<'py>, flags: &Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyAny>> {
    let kind = flags.get_type();
    let position = kind
        .getattr("__match_args__")
        .and_then(|names| names.call_method1("index", ("no_site",)))
        .and_then(|position| position.extract::<ffi::Py_ssize_t>());
    // `__match_args__` of struct sequences is there from Python 3.10 on; the order has not changed since 3.2.
    let position = position.unwrap_or(6);
    let fields = kind.getattr("n_fields")?.extract::<ffi::Py_ssize_t>()?;
    // SAFETY: `kind` is the struct sequence type of `sys.flags`, the fields that are not shown as a tuple included;
    // every field of the new object is set, with a reference of its own.
    unsafe {
        let copy = Bound::from_owned_ptr_or_err(py, ffi::PyStructSequence_New(kind.as_type_ptr()))?;
        for index in 0..fields {
            let value = if index == position {
                0_i32.into_pyobject(py)?.into_any()
            } else {
                Bound::from_borrowed_ptr_or_err(py, ffi::PyStructSequence_GetItem(flags.as_ptr(), index))?
            };
            ffi::PyStructSequence_SetItem(copy.as_ptr(), index, value.into_ptr());
        }
        Ok(copy)
    }
}

/// The constants of an ABI by their names in mpi.h, for the test that compares them with the header. A handle that is
/// the address of an exported object is that object's name.
#[pyfunction]
fn abi_constants<'py>(py: Python<'py>, abi: &str) -> PyResult<Bound<'py, PyDict>> {
    let family = family(abi)?;
    let abi = match family {
        Family::Mpich => abi::MPICH,
        Family::OpenMpi => abi::OPEN_MPI,
        Family::Standard => abi::STANDARD,
    };
    let constants = PyDict::new(py);
    for (name, value) in [
        ("MPI_COMM_WORLD", abi.comm_world),
        ("MPI_COMM_SELF", abi.comm_self),
        ("MPI_BYTE", abi.byte),
        ("MPI_INFO_NULL", abi.info_null),
        ("MPI_REQUEST_NULL", abi.request_null),
        ("MPI_ERRORS_RETURN", abi.errors_return),
        ("MPI_COMM_NULL_COPY_FN", abi.comm_null_copy_fn),
        ("MPI_STATUS_IGNORE", abi.status_ignore),
        ("MPI_MAX_ERROR_STRING", abi.max_error_string),
        ("MPI_MAX_LIBRARY_VERSION_STRING", abi.max_library_version_string),
    ] {
        constants.set_item(name, value)?;
    }
    if family == Family::OpenMpi {
        for (name, symbol) in [
            "MPI_COMM_WORLD",
            "MPI_COMM_SELF",
            "MPI_BYTE",
            "MPI_INFO_NULL",
            "MPI_REQUEST_NULL",
            "MPI_ERRORS_RETURN",
            "MPI_COMM_NULL_COPY_FN",
        ]
        .iter()
        .zip(abi::OPEN_MPI_HANDLES)
        {
            constants.set_item(name, symbol)?;
        }
    }
    constants.set_item("MPI_COMM_TYPE_SHARED", abi.comm_type_shared)?;
    constants.set_item("MPI_UNDEFINED", abi.undefined)?;
    for (name, value) in ["SINGLE", "FUNNELED", "SERIALIZED", "MULTIPLE"]
        .iter()
        .zip(abi.thread_levels)
    {
        constants.set_item(format!("MPI_THREAD_{name}"), value)?;
    }
    Ok(constants)
}

#[pymodule(gil_used = true)]
mod _core {
    #[pymodule_export]
    #[allow(non_upper_case_globals, reason = "Python's name")]
    const __version__: &str = env!("CARGO_PKG_VERSION");

    #[pymodule_export]
    use super::{
        Bundle, Finding, Modules, abi_constants, abort, broadcast, broadcast_shared, closures, compress, connect,
        crc32, decompress, deliver_files, filesystem_types, find_libmpi, flags_with_site, gather, hide_progress,
        is_active, is_first_on_host, is_truncated, needed, next_step, note, preload, read_own, release_memory,
        report_record, report_start, show_progress, states, store_claim, store_copy, store_link, store_open,
        store_problem, store_put, take_notes,
    };
}
