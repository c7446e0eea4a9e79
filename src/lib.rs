//! Device memory in user space that its owner can take away from every thread, system call, virtual CPU and
//! process at once, and give back.

#[cfg(not(target_os = "linux"))]
compile_error!("revocable-mmio needs Linux: it is built on userfaultfd, mremap and membarrier");

mod sync;

mod access;
#[doc(hidden)]
pub mod raw_for_tests;
pub mod signal;
