//! Errors of monitors.

use crate::sys::SysError;

/// A monitor cannot be made, or cannot go on.
///
/// ```
/// use revocable_mmio::{Monitor, MonitorError};
///
/// assert_eq!(Monitor::with_threads(0).unwrap_err(), MonitorError::NoThreads);
/// match Monitor::shared() {
///     Err(e) => println!("{e}"), // which right or kernel is missing; strategy Detach needs no monitor
///     Ok(monitor) => println!("{:?}", monitor.source()),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MonitorError {
    /// `with_threads(0)`.
    #[error("a monitor of 0 threads: use Monitor::manual() for one that your event loop drives")]
    NoThreads,
    /// The userfaultfd was made by another process, and serves that one.
    #[error("this userfaultfd serves the process that made it: hand on /dev/userfaultfd, see Monitor::from_device")]
    Foreign,
    /// Other code has closed its userfaultfd. Its mappings refuse from then on.
    #[error("the monitor's userfaultfd is gone; build the region with another monitor")]
    Dead,
    /// A system call failed.
    #[error("no monitor: {0}")]
    Sys(#[from] SysError),
}
