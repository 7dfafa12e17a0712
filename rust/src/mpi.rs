//! The foreign calls to libmpi: all of them, and nothing else.
//!
//! Each method is one MPI call whose return code is checked. Ordering, waiting and policy are in `world.rs`.

use crate::abi::{self, Abi, Family};
use crate::error::{Error, Result};
use libloading::os::unix::Library;
use std::ffi::{c_char, c_int, c_void};
use std::ptr;

/// Declares the functions of libmpi that the core calls, and how to find them in a loaded library.
macro_rules! functions {
    ($($field:ident = $symbol:literal ($($argument:ty),*);)*) => {
        struct Functions { $($field: unsafe extern "C" fn($($argument),*) -> c_int,)* }

        impl Functions {
            fn load(library: &Library) -> std::result::Result<Self, String> {
                Ok(Self {
                    $($field: {
                        // SAFETY: the signatures below are those of MPI 3.0, with handles widened to usize (see abi.rs).
                        let found = unsafe { library.get::<unsafe extern "C" fn($($argument),*) -> c_int>($symbol) };
                        *found.map_err(|_| $symbol.to_owned())?
                    },)*
                })
            }
        }
    };
}

type DeleteFunction = extern "C" fn(usize, c_int, *mut c_void, *mut c_void) -> c_int;

functions! {
    initialized = "MPI_Initialized" (*mut c_int);
    finalized = "MPI_Finalized" (*mut c_int);
    init_thread = "MPI_Init_thread" (*mut c_int, *mut c_void, c_int, *mut c_int);
    query_thread = "MPI_Query_thread" (*mut c_int);
    finalize = "MPI_Finalize" ();
    abort = "MPI_Abort" (usize, c_int);
    comm_rank = "MPI_Comm_rank" (usize, *mut c_int);
    comm_size = "MPI_Comm_size" (usize, *mut c_int);
    comm_idup = "MPI_Comm_idup" (usize, *mut usize, *mut usize);
    comm_free = "MPI_Comm_free" (*mut usize);
    comm_split = "MPI_Comm_split" (usize, c_int, c_int, *mut usize);
    comm_split_type = "MPI_Comm_split_type" (usize, c_int, c_int, usize, *mut usize);
    comm_set_errhandler = "MPI_Comm_set_errhandler" (usize, usize);
    comm_create_keyval = "MPI_Comm_create_keyval" (usize, DeleteFunction, *mut c_int, *mut c_void);
    comm_set_attr = "MPI_Comm_set_attr" (usize, c_int, *mut c_void);
    ibcast = "MPI_Ibcast" (*mut c_void, c_int, usize, c_int, usize, *mut usize);
    igather = "MPI_Igather" (*const c_void, c_int, usize, *mut c_void, c_int, usize, c_int, usize, *mut usize);
    igatherv = "MPI_Igatherv" (*const c_void, c_int, usize, *mut c_void, *const c_int, *const c_int, usize, c_int, usize, *mut usize);
    issend = "MPI_Issend" (*const c_void, c_int, usize, c_int, c_int, usize, *mut usize);
    irecv = "MPI_Irecv" (*mut c_void, c_int, usize, c_int, c_int, usize, *mut usize);
    test = "MPI_Test" (*mut usize, *mut c_int, usize);
    error_string = "MPI_Error_string" (c_int, *mut c_char, *mut c_int);
}

/// Our communicators are our own: one tag is enough.
const TAG: c_int = 0;

/// A communicator's handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Comm(usize);

/// A started operation. It must be tested until it is complete: MPI owns its buffer until then.
#[derive(Debug)]
#[must_use]
pub struct Request(usize);

/// A loaded MPI library.
pub struct Mpi {
    functions: Functions,
    abi: Abi,
    /// Never closed, used or not: MPI libraries leave threads and handlers behind.
    library: std::mem::ManuallyDrop<Library>,
}

impl Mpi {
    /// Looks up every function that the core needs.
    ///
    /// # Errors
    /// The name of the first symbol that the library lacks.
    pub fn bind(library: Library) -> std::result::Result<Self, String> {
        let library = std::mem::ManuallyDrop::new(library);
        let abi = abi::detect(&library)?;
        Ok(Self {
            functions: Functions::load(&library)?,
            abi,
            library,
        })
    }

    /// The binary interface of the library.
    pub fn abi(&self) -> &Abi {
        &self.abi
    }

    /// What `MPI_Get_library_version` says.
    pub fn library_version(&self) -> String {
        abi::library_version(&self.library)
    }

    /// `MPI_COMM_WORLD`
    pub fn comm_world(&self) -> Comm {
        Comm(self.abi.comm_world)
    }

    /// `MPI_COMM_SELF`
    pub fn comm_self(&self) -> Comm {
        Comm(self.abi.comm_self)
    }

    /// `MPI_Initialized`
    pub fn is_initialized(&self) -> Result<bool> {
        // SAFETY: a valid out-argument; allowed at any time (MPI 3.0, 8.7).
        self.flag("MPI_Initialized", |flag| unsafe { (self.functions.initialized)(flag) })
    }

    /// `MPI_Finalized`
    pub fn is_finalized(&self) -> Result<bool> {
        // SAFETY: a valid out-argument; allowed at any time (MPI 3.0, 8.7).
        self.flag("MPI_Finalized", |flag| unsafe { (self.functions.finalized)(flag) })
    }

    /// `MPI_Init_thread` at the level with this index: 0 single, 1 funneled, 2 serialized, 3 multiple.
    pub fn init_thread(&self, level: usize) -> Result<()> {
        let required = self.abi.thread_levels[level.min(3)];
        let mut provided = 0;
        // SAFETY: NULL for argc and argv is allowed (MPI 3.0, 8.7); the out-argument is valid.
        let code =
            unsafe { (self.functions.init_thread)(ptr::null_mut(), ptr::null_mut(), required, &raw mut provided) };
        self.check("MPI_Init_thread", code)
    }

    /// The provided thread level as an index: 0 single, 1 funneled, 2 serialized, 3 multiple.
    pub fn query_thread(&self) -> Result<usize> {
        let mut provided = 0;
        // SAFETY: MPI is initialised; the out-argument is valid.
        let code = unsafe { (self.functions.query_thread)(&raw mut provided) };
        self.check("MPI_Query_thread", code)?;
        Ok(self
            .abi
            .thread_levels
            .iter()
            .position(|&level| level == provided)
            .unwrap_or(0))
    }

    /// `MPI_Finalize`
    pub fn finalize(&self) -> Result<()> {
        // SAFETY: the caller has made sure that MPI is initialised and not finalised.
        let code = unsafe { (self.functions.finalize)() };
        self.check("MPI_Finalize", code)
    }

    /// `MPI_Abort` on `MPI_COMM_WORLD`.
    pub fn abort(&self, status: c_int) -> Result<()> {
        // SAFETY: the caller has made sure that MPI is initialised and not finalised.
        let code = unsafe { (self.functions.abort)(self.abi.comm_world, status) };
        self.check("MPI_Abort", code)
    }

    /// `MPI_Comm_rank`
    pub fn rank(&self, comm: Comm) -> Result<usize> {
        let mut rank = 0;
        // SAFETY: a valid communicator and out-argument.
        let code = unsafe { (self.functions.comm_rank)(comm.0, &raw mut rank) };
        self.check("MPI_Comm_rank", code)?;
        Ok(usize::try_from(rank).unwrap_or(0))
    }

    /// `MPI_Comm_size`
    pub fn size(&self, comm: Comm) -> Result<usize> {
        let mut size = 0;
        // SAFETY: a valid communicator and out-argument.
        let code = unsafe { (self.functions.comm_size)(comm.0, &raw mut size) };
        self.check("MPI_Comm_size", code)?;
        Ok(usize::try_from(size).unwrap_or(1))
    }

    /// Starts `MPI_Comm_idup`. The handle is written to `duplicate` by the time the request completes.
    ///
    /// # Safety
    /// `duplicate` must be a zero that stays valid and untouched until the request is complete.
    pub unsafe fn comm_idup(&self, comm: Comm, duplicate: *mut usize) -> Result<Request> {
        let mut request = 0;
        // SAFETY: a valid communicator; the caller vouches for the out-argument.
        let code = unsafe { (self.functions.comm_idup)(comm.0, duplicate, &raw mut request) };
        self.check("MPI_Comm_idup", code)?;
        Ok(Request(self.handle(request)))
    }

    /// The communicator whose handle MPI wrote to an out-argument.
    pub fn comm(&self, written: usize) -> Comm {
        Comm(self.handle(written))
    }

    /// `MPI_Comm_free`
    pub fn comm_free(&self, comm: Comm) -> Result<()> {
        let mut handle = comm.0;
        // SAFETY: a communicator that we made, freed once.
        let code = unsafe { (self.functions.comm_free)(&raw mut handle) };
        self.check("MPI_Comm_free", code)
    }

    /// The ranks of `comm` that share memory with this one, in the order of their ranks.
    pub fn comm_split_shared(&self, comm: Comm, rank: usize) -> Result<Comm> {
        let key = c_int::try_from(rank).unwrap_or(c_int::MAX);
        let mut shared = 0;
        // SAFETY: a valid communicator and out-argument.
        let code = unsafe {
            (self.functions.comm_split_type)(
                comm.0,
                self.abi.comm_type_shared,
                key,
                self.abi.info_null,
                &raw mut shared,
            )
        };
        self.check("MPI_Comm_split_type", code)?;
        Ok(Comm(self.handle(shared)))
    }

    /// The ranks of `comm` that are `members`, in the order of their ranks; nothing for the others.
    pub fn comm_split(&self, comm: Comm, member: bool, rank: usize) -> Result<Option<Comm>> {
        let color = if member { 0 } else { self.abi.undefined };
        let key = c_int::try_from(rank).unwrap_or(c_int::MAX);
        let mut members = 0;
        // SAFETY: a valid communicator and out-argument.
        let code = unsafe { (self.functions.comm_split)(comm.0, color, key, &raw mut members) };
        self.check("MPI_Comm_split", code)?;
        Ok(member.then(|| self.comm(members)))
    }

    /// Makes errors on `comm` come back as codes instead of ending the program.
    pub fn set_errors_return(&self, comm: Comm) -> Result<()> {
        // SAFETY: a valid communicator and a predefined error handler.
        let code = unsafe { (self.functions.comm_set_errhandler)(comm.0, self.abi.errors_return) };
        self.check("MPI_Comm_set_errhandler", code)
    }

    /// Has `function` called when `MPI_Finalize` frees `MPI_COMM_SELF`'s attributes (MPI 3.0, 8.7.1).
    pub fn call_in_finalize(&self, function: DeleteFunction) -> Result<()> {
        let mut keyval = 0;
        // SAFETY: the copy function is the predefined one that copies nothing; the delete function lives for ever.
        let code = unsafe {
            (self.functions.comm_create_keyval)(self.abi.comm_null_copy_fn, function, &raw mut keyval, ptr::null_mut())
        };
        self.check("MPI_Comm_create_keyval", code)?;
        // SAFETY: a fresh keyval; the attribute's value is not used.
        let code = unsafe { (self.functions.comm_set_attr)(self.abi.comm_self, keyval, ptr::null_mut()) };
        self.check("MPI_Comm_set_attr", code)
    }

    /// Starts `MPI_Ibcast` of bytes from rank 0.
    ///
    /// # Safety
    /// `buffer` must stay valid and untouched until the request is complete.
    pub unsafe fn ibcast(&self, buffer: *mut u8, size_bytes: usize, comm: Comm) -> Result<Request> {
        let count = count(size_bytes)?;
        let mut request = 0;
        // SAFETY: the caller vouches for the buffer.
        let code = unsafe { (self.functions.ibcast)(buffer.cast(), count, self.abi.byte, 0, comm.0, &raw mut request) };
        self.check("MPI_Ibcast", code)?;
        Ok(Request(self.handle(request)))
    }

    /// Starts `MPI_Igather` of equally many bytes from every rank to rank 0.
    ///
    /// # Safety
    /// Both buffers must stay valid and untouched until the request is complete; `received` holds `size_bytes`
    /// for every rank on rank 0 and is not used elsewhere.
    pub unsafe fn igather(&self, sent: *const u8, size_bytes: usize, received: *mut u8, comm: Comm) -> Result<Request> {
        let count = count(size_bytes)?;
        let mut request = 0;
        // SAFETY: the caller vouches for the buffers.
        let code = unsafe {
            (self.functions.igather)(
                sent.cast(),
                count,
                self.abi.byte,
                received.cast(),
                count,
                self.abi.byte,
                0,
                comm.0,
                &raw mut request,
            )
        };
        self.check("MPI_Igather", code)?;
        Ok(Request(self.handle(request)))
    }

    /// Starts `MPI_Igatherv` of bytes from every rank to rank 0; `places` are sizes and offsets there.
    ///
    /// # Safety
    /// All buffers must stay valid and untouched until the request is complete; on rank 0, `received` has room for what
    /// `places` says, which has an entry for every rank.
    pub unsafe fn igatherv(
        &self,
        sent: &[u8],
        received: *mut u8,
        (sizes, offsets): (&[c_int], &[c_int]),
        comm: Comm,
    ) -> Result<Request> {
        let count = count(sent.len())?;
        let mut request = 0;
        // SAFETY: the caller vouches for the buffers.
        let code = unsafe {
            (self.functions.igatherv)(
                sent.as_ptr().cast(),
                count,
                self.abi.byte,
                received.cast(),
                sizes.as_ptr(),
                offsets.as_ptr(),
                self.abi.byte,
                0,
                comm.0,
                &raw mut request,
            )
        };
        self.check("MPI_Igatherv", code)?;
        Ok(Request(self.handle(request)))
    }

    /// Starts `MPI_Issend` of bytes to a rank, in the order in which it receives. It completes when they are being
    /// received: MPI keeps for a rank that is late no more than what is not complete.
    ///
    /// # Safety
    /// `buffer` must stay valid and unchanged until the request is complete.
    pub unsafe fn issend(&self, buffer: *const u8, size_bytes: usize, rank: usize, comm: Comm) -> Result<Request> {
        let (count, rank) = (count(size_bytes)?, c_int::try_from(rank).unwrap_or(c_int::MAX));
        let mut request = 0;
        // SAFETY: the caller vouches for the buffer.
        let code = unsafe {
            (self.functions.issend)(buffer.cast(), count, self.abi.byte, rank, TAG, comm.0, &raw mut request)
        };
        self.check("MPI_Issend", code)?;
        Ok(Request(self.handle(request)))
    }

    /// Starts `MPI_Irecv` of bytes from a rank, in the order in which it sends.
    ///
    /// # Safety
    /// `buffer` must stay valid and untouched until the request is complete.
    pub unsafe fn irecv(&self, buffer: *mut u8, size_bytes: usize, rank: usize, comm: Comm) -> Result<Request> {
        let (count, rank) = (count(size_bytes)?, c_int::try_from(rank).unwrap_or(c_int::MAX));
        let mut request = 0;
        // SAFETY: the caller vouches for the buffer.
        let code =
            unsafe { (self.functions.irecv)(buffer.cast(), count, self.abi.byte, rank, TAG, comm.0, &raw mut request) };
        self.check("MPI_Irecv", code)?;
        Ok(Request(self.handle(request)))
    }

    /// `MPI_Test`: whether the operation is complete, and so its buffers ours again.
    pub fn test(&self, request: &mut Request) -> Result<bool> {
        let mut complete = 0;
        // SAFETY: a request that we started; MPI sets it to MPI_REQUEST_NULL on completion.
        let code = unsafe { (self.functions.test)(&raw mut request.0, &raw mut complete, self.abi.status_ignore) };
        self.check("MPI_Test", code)?;
        Ok(complete != 0)
    }

    fn flag(&self, call: &str, get: impl FnOnce(*mut c_int) -> c_int) -> Result<bool> {
        let mut flag = 0;
        let code = get(&raw mut flag);
        self.check(call, code)?;
        Ok(flag != 0)
    }

    /// A handle that MPI wrote to a zeroed 8-byte slot: MPICH writes 4 of them.
    fn handle(&self, written: usize) -> usize {
        if self.abi.family == Family::Mpich {
            written & 0xffff_ffff
        } else {
            written
        }
    }

    fn check(&self, call: &str, code: c_int) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        let mut text = vec![0_u8; self.abi.max_error_string + 1];
        let mut length = 0;
        // SAFETY: the buffer holds MPI_MAX_ERROR_STRING characters.
        let described = unsafe { (self.functions.error_string)(code, text.as_mut_ptr().cast(), &raw mut length) };
        let length = if described == 0 {
            usize::try_from(length).unwrap_or(0)
        } else {
            0
        };
        let text = String::from_utf8_lossy(&text[..length.min(text.len())]).into_owned();
        Err(Error::new(format!("{call} failed with code {code}: {}", text.trim())))
    }
}

fn count(size_bytes: usize) -> Result<c_int> {
    c_int::try_from(size_bytes)
        .map_err(|_| Error::new(format!("a message of {size_bytes} bytes is too large for one MPI call")))
}
