//! Opens the MPI library: the first candidate that loads, has what we need, and fits the launcher.

use crate::abi::{self, Family};
use crate::elf;
use crate::error::{Error, Result};
use crate::mpi::Mpi;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LOCAL, RTLD_NOW};
use log::debug;
use std::ffi::{CStr, c_int, c_void};
use std::path::{Path, PathBuf};

/// What the names of MPI libraries begin with.
#[cfg(not(feature = "linked-mpi"))]
const NAMES: [&str; 3] = ["libmpi.so", "libmpich.so", "libmpi_abi.so"];

/// An opened library and where it lies.
pub struct Opened {
    /// The functions and constants of the library.
    pub mpi: Mpi,
    /// The file that the dynamic loader chose.
    pub path: PathBuf,
    /// The candidate that led to it; None if it was loaded already.
    pub candidate: Option<String>,
}

/// A candidate, and why it is not used.
pub type Refused = (String, String);

/// Opens the first library of `candidates` that works.
///
/// A candidate is a file, a bare name for the dynamic loader to resolve, or `needed-by:FILE`: the MPI library that
/// this extension module is linked to. A library that is loaded already is used before all of them: there can be
/// only one in a process. `launcher` is the family that the launcher can start, where that is known.
///
/// # Errors
/// Every attempt with its outcome.
pub fn open(candidates: &[String], launcher: Option<Family>, global: bool) -> Result<Opened> {
    let (opened, refused) = search(candidates, launcher, global);
    opened.ok_or_else(|| {
        let attempts: Vec<String> = refused
            .iter()
            .map(|(name, cause)| format!("  {name}: {cause}"))
            .collect();
        Error::new(format!(
            "no usable MPI library found. Tried:\n{}\nSet MPIIMPORT_LIBMPI to the file name of the libmpi that belongs \
             to your mpiexec.",
            attempts.join("\n")
        ))
    })
}

/// What [`open`] finds, with the candidates that were refused before.
pub fn search(candidates: &[String], launcher: Option<Family>, global: bool) -> (Option<Opened>, Vec<Refused>) {
    let mut refused = Vec::new();
    if let Some(opened) = already_loaded() {
        return (Some(opened), refused);
    }
    let scope = if global { RTLD_GLOBAL } else { RTLD_LOCAL };
    for candidate in candidates {
        for name in expand(candidate) {
            match open_one(&name, launcher, scope) {
                Ok(opened) => {
                    debug!("libmpi: `{name}` is {}", opened.path.display());
                    return (Some(opened), refused);
                }
                Err(cause) => {
                    debug!("libmpi: `{name}`: {cause}");
                    refused.push((name, cause));
                }
            }
        }
    }
    (None, refused)
}

fn open_one(name: &str, launcher: Option<Family>, scope: c_int) -> std::result::Result<Opened, String> {
    // SAFETY: running a library's initialisers is what loading MPI means; the user or the environment chose it.
    let library = unsafe { Library::open(Some(name), RTLD_NOW | scope) }.map_err(|error| describe(name, &error))?;
    let path = library_path(&library).unwrap_or_else(|| PathBuf::from(name));
    preload_libfabric(&library, &path, scope);
    let mpi = Mpi::bind(library).map_err(|symbol| {
        format!("lacks the function or object `{symbol}`; an MPI library of version 3.0 or later is needed")
    })?;
    match launcher {
        Some(family) if !compatible(family, mpi.abi().family) => Err(format!(
            "this is an {} library, but the launcher belongs to {}",
            mpi.abi().family.name(),
            family.name()
        )),
        _ => Ok(Opened {
            mpi,
            path,
            candidate: Some(name.to_owned()),
        }),
    }
}

/// MPICH's launchers also start programs that use the standard ABI.
fn compatible(launcher: Family, library: Family) -> bool {
    launcher == library || (launcher == Family::Mpich && library == Family::Standard)
}

fn loaded(mpi: Mpi, path: PathBuf) -> Opened {
    Opened {
        mpi,
        path,
        candidate: None,
    }
}

#[cfg(not(feature = "linked-mpi"))]
fn already_loaded() -> Option<Opened> {
    let this = Library::this();
    if abi::address(&this, "MPI_Get_version").is_some() {
        let path = library_path(&this).unwrap_or_default();
        return Mpi::bind(this).ok().map(|mpi| loaded(mpi, path));
    }
    loaded_objects().into_iter().find_map(|object| {
        let name = object.file_name()?.to_string_lossy();
        if !NAMES.iter().any(|prefix| name.starts_with(prefix)) {
            return None;
        }
        // SAFETY: RTLD_NOLOAD runs no initialiser.
        let library = unsafe { Library::open(Some(&object), RTLD_NOW | libc::RTLD_NOLOAD) }.ok()?;
        let path = library_path(&library)?;
        Mpi::bind(library).ok().map(|mpi| loaded(mpi, path))
    })
}

/// The files that are loaded. To ask for each name with RTLD_NOLOAD would search every folder of LD_LIBRARY_PATH for it.
#[cfg(not(feature = "linked-mpi"))]
fn loaded_objects() -> Vec<PathBuf> {
    use std::os::unix::ffi::OsStrExt;

    unsafe extern "C" fn note(info: *mut libc::dl_phdr_info, _size: usize, objects: *mut c_void) -> c_int {
        // SAFETY: `loaded_objects` passes its list, and nobody else has it meanwhile.
        let objects = unsafe { &mut *objects.cast::<Vec<PathBuf>>() };
        // SAFETY: the dynamic loader passes a valid description for the time of the call.
        let name = unsafe { (*info).dlpi_name };
        if !name.is_null() {
            // SAFETY: it is a C string that lives as long as the object is loaded, and that is during the call.
            let name = unsafe { CStr::from_ptr(name) };
            objects.push(PathBuf::from(std::ffi::OsStr::from_bytes(name.to_bytes())));
        }
        0
    }
    let mut objects: Vec<PathBuf> = Vec::new();
    // SAFETY: `note` has the signature asked for and takes the list as its last argument.
    unsafe { libc::dl_iterate_phdr(Some(note), (&raw mut objects).cast()) };
    objects
}

/// The library that this build was linked to.
#[cfg(feature = "linked-mpi")]
fn already_loaded() -> Option<Opened> {
    let path = object_path(mpi_sys::MPI_Initialized as *const () as usize)?;
    // SAFETY: the library is loaded: this only makes a handle for it.
    let library = unsafe { Library::open(Some(&path), RTLD_NOW) }.ok()?;
    Mpi::bind(library).ok().map(|mpi| loaded(mpi, path))
}

/// `needed-by:FILE` becomes the MPI libraries that FILE needs, where its search path says and as bare names.
fn expand(candidate: &str) -> Vec<String> {
    let Some(file) = candidate.strip_prefix("needed-by:") else {
        return vec![candidate.to_owned()];
    };
    let file = Path::new(file);
    let Ok(dynamic) = elf::dynamic(file) else {
        return Vec::new();
    };
    let origin = file.parent().unwrap_or(Path::new("/")).display().to_string();
    let mut names = Vec::new();
    for soname in dynamic.needed.iter().filter(|name| name.starts_with("libmpi")) {
        for directory in dynamic.search_path() {
            let directory = directory.replace("${ORIGIN}", &origin).replace("$ORIGIN", &origin);
            let path = Path::new(&directory).join(soname);
            if path.exists() {
                names.push(path.display().to_string());
            }
        }
        names.push(soname.clone());
    }
    names
}

/// Intel MPI opened by its full path does not find its own libfabric, unless that is loaded first.
fn preload_libfabric(library: &Library, path: &Path, scope: c_int) {
    if abi::address(library, "I_MPI_Check_image_status").is_none() {
        return;
    }
    let disabled = |value: String| matches!(value.to_lowercase().as_str(), "0" | "no" | "off" | "false" | "disable");
    if std::env::var("I_MPI_OFI_LIBRARY_INTERNAL").is_ok_and(disabled)
        || std::env::var("I_MPI_FABRICS").is_ok_and(|fabrics| fabrics == "shm")
    {
        return;
    }
    let Some(mut root) = path.parent().and_then(Path::parent) else {
        return;
    };
    if root.ends_with("release") || root.ends_with("debug") {
        root = root.parent().unwrap_or(root);
    }
    let folders = [
        "opt/mpi/libfabric/lib",
        "libfabric/lib",
        "libfabric",
        "lib/libfabric",
        "lib",
    ];
    let Some(folder) = folders
        .iter()
        .map(|folder| root.join(folder))
        .find(|folder| folder.join("libfabric.so.1").is_file())
    else {
        return;
    };
    if std::env::var_os("FI_PROVIDER_PATH").is_none() {
        let providers = folder.join("prov");
        let providers = if providers.is_dir() { providers } else { folder.clone() };
        // SAFETY: under python-mpi there is no other thread yet. With `install()` there may be: glibc locks out one that
        // changes the environment, and from 2.41 on one that reads it; os.environ[...] = ... is no safer.
        unsafe { std::env::set_var("FI_PROVIDER_PATH", providers) };
    }
    // SAFETY: as for libmpi itself.
    match unsafe { Library::open(Some(folder.join("libfabric.so.1")), RTLD_NOW | scope) } {
        Ok(libfabric) => std::mem::forget(libfabric),
        Err(error) => debug!("libfabric of Intel MPI: {}", describe("", &error)),
    }
}

fn library_path(library: &Library) -> Option<PathBuf> {
    object_path(abi::address(library, "MPI_Initialized")?)
}

/// The file of the loaded object that holds this address.
fn object_path(address: usize) -> Option<PathBuf> {
    // SAFETY: an all-zero Dl_info is a valid value of this plain struct.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: dladdr takes any address and a valid out-argument.
    let found = unsafe { libc::dladdr(address as *const c_void, &raw mut info) };
    if found == 0 || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: dladdr gave a C string that lives as long as the object is loaded, and it is never closed.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    // Not canonicalised: that would cost an operation for each part of the path, on every rank.
    std::path::absolute(name.to_string_lossy().as_ref()).ok()
}

/// `libloading` says only "dlopen failed"; its source has the cause.
fn describe(name: &str, error: &libloading::Error) -> String {
    let text = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    // The loader begins with the name that it was asked for, which is said already.
    text.strip_prefix(name)
        .and_then(|rest| rest.strip_prefix(": "))
        .map_or(text.clone(), str::to_owned)
}
