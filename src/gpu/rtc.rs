//! Compilers at run time: hipRTC and NVRTC, whose functions differ only in their names.

use std::ffi::{CString, c_char, c_int, c_void};

use libloading::os::unix::Library;

use super::sources::SOURCES;

/// The names of a library's functions.
pub(super) struct Names {
    /// hiprtc or nvrtc
    pub(super) prefix: &'static str,
    /// Its name for the result: Code or CUBIN.
    pub(super) result: &'static str,
}

type Program = *mut c_void;
type Create = unsafe extern "C" fn(
    *mut Program,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;
type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Get = unsafe extern "C" fn(Program, *mut c_char) -> c_int;

/// A compiler of the kernels.
pub(super) struct Compiler<'l> {
    names: Names,
    create: Create,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    log_size: Size,
    log: Get,
    code_size: Size,
    code: Get,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    _library: &'l Library,
}

impl<'l> Compiler<'l> {
    /// The compiler in `library`.
    ///
    /// # Errors
    /// If a function is missing.
    pub(super) fn new(library: &'l Library, names: Names) -> Result<Self, String> {
        let Names { prefix, result } = names;
        /// The function with this name, with the type of the field.
        macro_rules! function {
            ($name:expr) => {
                // SAFETY: the signature is that of hiprtc.h of HIP 5, 6 and 7, and of nvrtc.h of CUDA 11.2 to 13.
                unsafe { *library.get(format!("{}\0", $name).as_bytes()).map_err(|e| e.to_string())? }
            };
        }
        Ok(Self {
            create: function!(format!("{prefix}CreateProgram")),
            compile: function!(format!("{prefix}CompileProgram")),
            log_size: function!(format!("{prefix}GetProgramLogSize")),
            log: function!(format!("{prefix}GetProgramLog")),
            code_size: function!(format!("{prefix}Get{result}Size")),
            code: function!(format!("{prefix}Get{result}")),
            destroy: function!(format!("{prefix}DestroyProgram")),
            names,
            _library: library,
        })
    }

    /// The kernels compiled with `options`.
    ///
    /// # Errors
    /// The compiler's messages.
    pub(super) fn compile(&self, options: &[String]) -> Result<Vec<u8>, String> {
        let text = |s: &str| CString::new(s).expect("sources and names have no zero byte");
        let Some(((main, source), headers)) = SOURCES.split_first() else {
            return Err("this library was built without the sources of the kernels".into());
        };
        let (main, source) = (text(main), text(source));
        let names: Vec<_> = headers.iter().map(|(name, _)| text(name)).collect();
        let contents: Vec<_> = headers.iter().map(|(_, content)| text(content)).collect();
        let pointers = |texts: &[CString]| texts.iter().map(|t| t.as_ptr()).collect::<Vec<_>>();
        let (name_pointers, content_pointers) = (pointers(&names), pointers(&contents));
        let mut program = std::ptr::null_mut();
        // SAFETY: all strings live until the call returns, and there are as many names as contents.
        let status = unsafe {
            (self.create)(
                &mut program,
                source.as_ptr(),
                main.as_ptr(),
                headers.len() as c_int,
                content_pointers.as_ptr(),
                name_pointers.as_ptr(),
            )
        };
        if status != 0 {
            return Err(format!("{}CreateProgram returned {status}", self.names.prefix));
        }
        let result = self.compile_program(program, options);
        // SAFETY: the program was made above and is not used any more.
        unsafe { (self.destroy)(&mut program) };
        result
    }

    fn compile_program(&self, program: Program, options: &[String]) -> Result<Vec<u8>, String> {
        let texts: Vec<_> = options.iter().map(|o| CString::new(o.as_str()).expect("no zero byte")).collect();
        let pointers: Vec<_> = texts.iter().map(|o| o.as_ptr()).collect();
        // SAFETY: the program is valid and the options live until the call returns.
        let status = unsafe { (self.compile)(program, pointers.len() as c_int, pointers.as_ptr()) };
        if status != 0 {
            let log = self.bytes(program, self.log_size, self.log).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let log = log.trim_matches(['\0', '\n', ' ']);
            let beginning: String = log.chars().take(2000).collect();
            let arch = options.last().and_then(|o| o.split_once('=')).map_or("", |(_, arch)| arch);
            return Err(format!("{}CompileProgram for {arch} returned {status}: {beginning}", self.names.prefix));
        }
        self.bytes(program, self.code_size, self.code)
    }

    /// The bytes returned by a pair of functions, one for the size and one for the contents.
    fn bytes(&self, program: Program, size: Size, get: Get) -> Result<Vec<u8>, String> {
        let mut bytes = 0;
        // SAFETY: the program is valid, and so is the out pointer.
        let status = unsafe { size(program, &mut bytes) };
        let mut buffer = vec![0u8; bytes];
        // SAFETY: the buffer has the size asked for.
        match if status == 0 { unsafe { get(program, buffer.as_mut_ptr().cast()) } } else { status } {
            0 => Ok(buffer),
            status => Err(format!("the result of {}CompileProgram cannot be had: {status}", self.names.prefix)),
        }
    }
}
