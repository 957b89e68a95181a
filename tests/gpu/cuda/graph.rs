//! Streams, events, and graphs: work that is queued once and launched many times.

use super::Cuda;
use super::driver::Handle;

/// Of CUstream_flags: does not wait for the default stream.
const NON_BLOCKING: u32 = 1;
/// Of CUstreamCaptureMode: of this thread's calls, those that would break the capture are refused.
const THREAD_LOCAL: i32 = 1;

/// A queue of a device.
pub struct Stream(Handle);

impl Stream {
    /// The one that waits for all others.
    pub const DEFAULT: Self = Self(std::ptr::null_mut());

    pub(super) fn handle(&self) -> Handle {
        self.0
    }
}

/// Work that can be launched again and again.
pub struct Graph<'c> {
    cuda: &'c Cuda,
    executable: Handle,
}

/// A point in a stream, with its time.
pub struct Event(Handle);

impl Cuda {
    /// A stream of its own, for as long as the process lives.
    pub fn stream(&self) -> Result<Stream, String> {
        self.enter()?;
        let mut stream = std::ptr::null_mut();
        // SAFETY: the out pointer is valid.
        let status = unsafe { (self.driver.cuStreamCreate)(&mut stream, NON_BLOCKING) };
        self.driver.check(status, || "cuStreamCreate".into())?;
        Ok(Stream(stream))
    }

    /// An event, for as long as the process lives.
    pub fn event(&self) -> Result<Event, String> {
        self.enter()?;
        let mut event = std::ptr::null_mut();
        // SAFETY: the out pointer is valid.
        self.driver.check(unsafe { (self.driver.cuEventCreate)(&mut event, 0) }, || "cuEventCreate".into())?;
        Ok(Event(event))
    }

    /// What `queue` queues on `stream`, as a graph: it is not run.
    pub fn capture(&self, stream: &Stream, queue: impl FnOnce() -> Result<(), String>) -> Result<Graph<'_>, String> {
        self.enter()?;
        let Self { driver, .. } = self;
        // SAFETY: the stream is this device's, and not being captured.
        let status = unsafe { (driver.cuStreamBeginCapture_v2)(stream.handle(), THREAD_LOCAL) };
        driver.check(status, || "cuStreamBeginCapture".into())?;
        let queued = queue();
        let mut graph = std::ptr::null_mut();
        // SAFETY: the capture began above; the out pointer is valid.
        let status = unsafe { (driver.cuStreamEndCapture)(stream.handle(), &mut graph) };
        queued?;
        driver.check(status, || "cuStreamEndCapture".into())?;
        let mut executable = std::ptr::null_mut();
        // SAFETY: the graph was made above; what is instantiated is a copy of it.
        unsafe {
            let status = (driver.cuGraphInstantiateWithFlags)(&mut executable, graph, 0);
            driver.check((driver.cuGraphDestroy)(graph), || "cuGraphDestroy".into())?;
            driver.check(status, || "cuGraphInstantiateWithFlags".into())?;
        }
        Ok(Graph { cuda: self, executable })
    }

    /// Milliseconds that the device takes for what `queue` queues on `stream`, by `events`; waits for it.
    pub fn time(
        &self,
        stream: &Stream,
        [start, end]: [&Event; 2],
        queue: impl FnOnce() -> Result<(), String>,
    ) -> Result<f64, String> {
        self.enter()?;
        let Self { driver, .. } = self;
        let mut milliseconds = 0.0;
        // SAFETY: events and stream are this device's.
        driver.check(unsafe { (driver.cuEventRecord)(start.0, stream.handle()) }, || "cuEventRecord".into())?;
        queue()?;
        // SAFETY: as above, and the out pointer is valid.
        unsafe {
            driver.check((driver.cuEventRecord)(end.0, stream.handle()), || "cuEventRecord".into())?;
            driver.check((driver.cuEventSynchronize)(end.0), || "cuEventSynchronize".into())?;
            let status = (driver.cuEventElapsedTime)(&mut milliseconds, start.0, end.0);
            driver.check(status, || "cuEventElapsedTime".into())?;
        }
        Ok(f64::from(milliseconds))
    }
}

impl Graph<'_> {
    /// Queues it on `stream`.
    ///
    /// # Safety
    /// What the captured work touches is still there, until the stream has run it.
    pub unsafe fn launch(&self, stream: &Stream) -> Result<(), String> {
        self.cuda.enter()?;
        // SAFETY: by this function's contract.
        let status = unsafe { (self.cuda.driver.cuGraphLaunch)(self.executable, stream.handle()) };
        self.cuda.driver.check(status, || "cuGraphLaunch".into())
    }
}

impl Drop for Graph<'_> {
    fn drop(&mut self) {
        // After an error the device refuses everything: there is nobody to tell.
        let _ = self.cuda.synchronize();
        // SAFETY: it was instantiated for this graph alone, and is not running.
        let _ = unsafe { (self.cuda.driver.cuGraphExecDestroy)(self.executable) };
    }
}
