//! hipRTC: kernels compiled for a device that this library carries no code for.

use std::ffi::{CString, c_char, c_int, c_void};

use libloading::os::unix::{Library, RTLD_NOW};

use super::code::{OPTIONS, SOURCES, is_code_object};
use super::library::already_loaded;

/// Compiles the kernels for `arch` with the hipRTC of HIP `major`. `hip` is HIP's own library, which has hipRTC inside
/// up to version 5.
///
/// # Errors
/// Says what is missing, or what the compiler said.
pub(super) fn compile(hip: &Library, major: u32, arch: &str) -> Result<Vec<u8>, String> {
    let file = format!("libhiprtc.so.{major}");
    // SAFETY: AMD's compiler, by its name; nothing of ours depends on its initialisers.
    let separate = already_loaded(&file).map_or_else(|| unsafe { Library::open(Some(&file), RTLD_NOW) }, Ok);
    match &separate {
        Ok(library) => Compiler::new(library)?.compile(arch),
        Err(e) => Compiler::new(hip).map_err(|_| e.to_string())?.compile(arch),
    }
}

type Program = *mut c_void;

/// The functions of hipRTC, by their names there.
#[allow(non_snake_case)]
struct Compiler {
    hiprtcCreateProgram: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    hiprtcCompileProgram: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    hiprtcGetProgramLogSize: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    hiprtcGetProgramLog: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    hiprtcGetCodeSize: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    hiprtcGetCode: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    hiprtcDestroyProgram: unsafe extern "C" fn(*mut Program) -> c_int,
}

impl Compiler {
    fn new(library: &Library) -> Result<Self, String> {
        /// The function of a name, as the type that the field asks for.
        macro_rules! function {
            ($name:ident) => {
                // SAFETY: the signature is that of hiprtc.h, the same in HIP 5, 6 and 7.
                unsafe { *library.get(concat!(stringify!($name), "\0").as_bytes()).map_err(|e| e.to_string())? }
            };
        }
        Ok(Self {
            hiprtcCreateProgram: function!(hiprtcCreateProgram),
            hiprtcCompileProgram: function!(hiprtcCompileProgram),
            hiprtcGetProgramLogSize: function!(hiprtcGetProgramLogSize),
            hiprtcGetProgramLog: function!(hiprtcGetProgramLog),
            hiprtcGetCodeSize: function!(hiprtcGetCodeSize),
            hiprtcGetCode: function!(hiprtcGetCode),
            hiprtcDestroyProgram: function!(hiprtcDestroyProgram),
        })
    }

    fn compile(&self, arch: &str) -> Result<Vec<u8>, String> {
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
            (self.hiprtcCreateProgram)(
                &mut program,
                source.as_ptr(),
                main.as_ptr(),
                headers.len() as c_int,
                content_pointers.as_ptr(),
                name_pointers.as_ptr(),
            )
        };
        if status != 0 {
            return Err(format!("hiprtcCreateProgram returned {status}"));
        }
        let result = self.compile_program(program, arch);
        // SAFETY: the program was made above and is used no more.
        unsafe { (self.hiprtcDestroyProgram)(&mut program) };
        result
    }

    fn compile_program(&self, program: Program, arch: &str) -> Result<Vec<u8>, String> {
        let options = OPTIONS.iter().map(|o| o.to_string()).chain([format!("--offload-arch={arch}")]);
        let options: Vec<_> = options.map(|o| CString::new(o).expect("no zero byte")).collect();
        let pointers: Vec<_> = options.iter().map(|o| o.as_ptr()).collect();
        // SAFETY: the program is valid and the options live until the call returns.
        let status = unsafe { (self.hiprtcCompileProgram)(program, pointers.len() as c_int, pointers.as_ptr()) };
        if status != 0 {
            let log = self.bytes(program, self.hiprtcGetProgramLogSize, self.hiprtcGetProgramLog).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let log = log.trim_matches(['\0', '\n', ' ']);
            let beginning: String = log.chars().take(2000).collect();
            return Err(format!("hiprtcCompileProgram for {arch} returned {status}: {beginning}"));
        }
        let code = self.bytes(program, self.hiprtcGetCodeSize, self.hiprtcGetCode)?;
        if !is_code_object(&code) {
            return Err(format!("hiprtcGetCode gave {} bytes that are no code object", code.len()));
        }
        Ok(code)
    }

    /// What a pair of functions tells the size of and gives.
    fn bytes(
        &self,
        program: Program,
        size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
        get: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    ) -> Result<Vec<u8>, String> {
        let mut bytes = 0;
        // SAFETY: the program is valid, and so is the out pointer.
        let status = unsafe { size(program, &mut bytes) };
        let mut buffer = vec![0u8; bytes];
        // SAFETY: the buffer has the size asked for.
        match if status == 0 { unsafe { get(program, buffer.as_mut_ptr().cast()) } } else { status } {
            0 => Ok(buffer),
            status => Err(format!("hipRTC's result cannot be had: {status}")),
        }
    }
}
