//! The three binary interfaces that MPI libraries have, as one table of constants.
//!
//! A handle is an `int` in MPICH and its kin, and a pointer in Open MPI and in the standard ABI of MPI 5.0
//! (chapter 20). All fit a `usize`: an integer argument is passed in the low half of the same register on
//! x86-64 and aarch64. `tests/launch/test_abi.py` compiles a C program against each installed `mpi.h` and
//! compares every value here with what the compiler says.

use libloading::os::unix::Library;
use std::ffi::{c_char, c_int, c_void};

/// Which binary interface a library has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// MPICH, Intel MPI, MVAPICH, Cray MPICH: the common ABI of the MPICH initiative.
    Mpich,
    /// Open MPI 4 and later: predefined handles are the addresses of exported objects.
    OpenMpi,
    /// The standard ABI of MPI 5.0.
    Standard,
}

impl Family {
    /// The name that users, options and messages use.
    pub fn name(self) -> &'static str {
        match self {
            Family::Mpich => "mpich",
            Family::OpenMpi => "openmpi",
            Family::Standard => "mpiabi",
        }
    }
}

/// The constants of one binary interface: only those that the core uses.
#[derive(Clone, Copy, Debug)]
pub struct Abi {
    /// Whose values these are.
    pub family: Family,
    /// `MPI_COMM_WORLD`
    pub comm_world: usize,
    /// `MPI_COMM_SELF`
    pub comm_self: usize,
    /// `MPI_BYTE`
    pub byte: usize,
    /// `MPI_INFO_NULL`
    pub info_null: usize,
    /// `MPI_REQUEST_NULL`
    pub request_null: usize,
    /// `MPI_ERRORS_RETURN`
    pub errors_return: usize,
    /// `MPI_COMM_NULL_COPY_FN`
    pub comm_null_copy_fn: usize,
    /// `MPI_STATUS_IGNORE`
    pub status_ignore: usize,
    /// `MPI_COMM_TYPE_SHARED`
    pub comm_type_shared: c_int,
    /// `MPI_UNDEFINED`
    pub undefined: c_int,
    /// `MPI_THREAD_SINGLE`, `_FUNNELED`, `_SERIALIZED`, `_MULTIPLE`
    pub thread_levels: [c_int; 4],
    /// `MPI_MAX_ERROR_STRING`
    pub max_error_string: usize,
    /// `MPI_MAX_LIBRARY_VERSION_STRING`
    pub max_library_version_string: usize,
}

/// MPICH 3.1 to 5.0, Intel MPI 2017 and later: `mpi.h`.
pub const MPICH: Abi = Abi {
    family: Family::Mpich,
    comm_world: 0x4400_0000,
    comm_self: 0x4400_0001,
    byte: 0x4c00_010d,
    info_null: 0x1c00_0000,
    request_null: 0x2c00_0000,
    errors_return: 0x5400_0001,
    comm_null_copy_fn: 0,
    status_ignore: 1,
    comm_type_shared: 1,
    undefined: -32766,
    thread_levels: [0, 1, 2, 3],
    max_error_string: 512,
    max_library_version_string: 8192,
};

/// MPI 5.0, chapter 20 (`mpi_abi.h`).
pub const STANDARD: Abi = Abi {
    family: Family::Standard,
    comm_world: 0x101,
    comm_self: 0x102,
    byte: 0x247,
    info_null: 0x130,
    request_null: 0x180,
    errors_return: 0x143,
    comm_null_copy_fn: 0,
    status_ignore: 0,
    comm_type_shared: 221,
    undefined: -32766,
    thread_levels: [0, 1024, 2048, 4096],
    max_error_string: 512,
    max_library_version_string: 8192,
};

/// Intel MPI 2021.18 and .19 have `MPI_ERRORS_RETURN` and `MPI_ERRORS_ABORT` of the standard ABI interchanged:
/// 0x143 aborts there and 0x142 returns.
const INTEL_STANDARD_ERRORS_RETURN: usize = 0x142;

/// Open MPI 4 and 5 (`mpi.h`): the handles are addresses, filled in by [`detect`].
pub const OPEN_MPI: Abi = Abi {
    family: Family::OpenMpi,
    comm_world: 0,
    comm_self: 0,
    byte: 0,
    info_null: 0,
    request_null: 0,
    errors_return: 0,
    comm_null_copy_fn: 0,
    status_ignore: 0,
    comm_type_shared: 0,
    undefined: -32766,
    thread_levels: [0, 1, 2, 3],
    max_error_string: 256,
    max_library_version_string: 256,
};

/// The symbols whose addresses are Open MPI's handles, in the order in which [`detect`] assigns them.
pub const OPEN_MPI_HANDLES: [&str; 7] = [
    "ompi_mpi_comm_world",
    "ompi_mpi_comm_self",
    "ompi_mpi_byte",
    "ompi_mpi_info_null",
    "ompi_request_null",
    "ompi_mpi_errors_return",
    "OMPI_C_MPI_COMM_NULL_COPY_FN",
];

/// Says which ABI a loaded library has, without initialising MPI.
///
/// MPICH 5 and Intel's `libmpi.so.12` export `MPI_Abi_get_version` too and answer -1: only a positive
/// major version means the standard ABI.
///
/// # Errors
/// The name of the symbol that the library lacks.
pub fn detect(library: &Library) -> std::result::Result<Abi, String> {
    if standard_abi_major(library) > 0 {
        let mut abi = STANDARD;
        if library_version(library).contains("Intel(R) MPI") {
            abi.errors_return = INTEL_STANDARD_ERRORS_RETURN;
        }
        return Ok(abi);
    }
    if address(library, OPEN_MPI_HANDLES[0]).is_none() {
        return Ok(MPICH);
    }
    let mut handles = [0; OPEN_MPI_HANDLES.len()];
    for (handle, symbol) in handles.iter_mut().zip(OPEN_MPI_HANDLES) {
        *handle = address(library, symbol).ok_or_else(|| symbol.to_owned())?;
    }
    let [
        comm_world,
        comm_self,
        byte,
        info_null,
        request_null,
        errors_return,
        comm_null_copy_fn,
    ] = handles;
    Ok(Abi {
        comm_world,
        comm_self,
        byte,
        info_null,
        request_null,
        errors_return,
        comm_null_copy_fn,
        ..OPEN_MPI
    })
}

/// The address of an exported object or function.
pub fn address(library: &Library, symbol: &str) -> Option<usize> {
    // SAFETY: the symbol is only used as an address here, whatever its type.
    let found = unsafe { library.get::<*const c_void>(symbol.as_bytes()) };
    found.ok().map(|found| found.into_raw() as usize)
}

fn standard_abi_major(library: &Library) -> c_int {
    type AbiGetVersion = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;
    // SAFETY: MPI 5.0, 20.2 gives this signature.
    let Ok(abi_get_version) = (unsafe { library.get::<AbiGetVersion>("MPI_Abi_get_version") }) else {
        return 0;
    };
    let (mut major, mut minor) = (0, 0);
    // SAFETY: two valid out-arguments; may be called before MPI_Init (MPI 5.0, 20.2).
    let code = unsafe { abi_get_version(&raw mut major, &raw mut minor) };
    if code == 0 { major } else { 0 }
}

/// What `MPI_Get_library_version` says, or nothing if the library lacks it.
pub fn library_version(library: &Library) -> String {
    type GetLibraryVersion = unsafe extern "C" fn(*mut c_char, *mut c_int) -> c_int;
    // SAFETY: MPI 3.0, 8.1.1 gives this signature.
    let Ok(get_library_version) = (unsafe { library.get::<GetLibraryVersion>("MPI_Get_library_version") }) else {
        return String::new();
    };
    // The longest MPI_MAX_LIBRARY_VERSION_STRING of the three families.
    let mut text = vec![0_u8; MPICH.max_library_version_string + 1];
    let mut length = 0;
    // SAFETY: the buffer holds the maximum; may be called before MPI_Init (MPI 3.0, 8.7).
    let code = unsafe { get_library_version(text.as_mut_ptr().cast(), &raw mut length) };
    if code != 0 {
        return String::new();
    }
    let length = usize::try_from(length).unwrap_or(0).min(text.len());
    String::from_utf8_lossy(&text[..length])
        .trim_end_matches('\0')
        .trim()
        .to_owned()
}
