//! The calling thread, as the kernel and its tools name it.

/// The caller's thread id, the one in `/proc/PID/task`.
pub(crate) fn current_tid() -> i32 {
    nix::unistd::gettid().as_raw()
}
