//! The calling thread and process, as the kernel and its tools name them.

/// The caller's thread id, the one in `/proc/PID/task`.
#[cfg(not(revocable_model))]
pub(crate) fn current_tid() -> i32 {
    nix::unistd::gettid().as_raw()
}

/// loom runs all threads of a model in one: they have numbers of their own.
#[cfg(revocable_model)]
pub(crate) fn current_tid() -> i32 {
    crate::gate::model_thread()
}

/// The caller's process id: another one in a forked child.
pub(crate) fn current_pid() -> i32 {
    nix::unistd::getpid().as_raw()
}
