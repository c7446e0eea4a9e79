//! The calling thread and process, as the kernel and its tools name them.

/// The caller's thread id, the one in `/proc/PID/task`.
pub(crate) fn current_tid() -> i32 {
    nix::unistd::gettid().as_raw()
}

/// The caller's process id: another one in a forked child.
pub(crate) fn current_pid() -> i32 {
    nix::unistd::getpid().as_raw()
}
