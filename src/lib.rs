//! Device memory in user space that its owner can take away from every thread, system call, virtual CPU and
//! process at once, and give back.

#[cfg(not(target_os = "linux"))]
compile_error!("revocable-mmio needs Linux: it is built on userfaultfd, mremap and membarrier");

pub mod fault;
#[cfg_attr(
    any(not(test), revocable_model),
    expect(dead_code, reason = "the regions that use it come next")
)]
mod gate;
mod sync;
#[cfg_attr(
    revocable_model,
    expect(dead_code, reason = "the model makes no system call")
)]
mod sys;
#[cfg_attr(
    any(not(test), revocable_model),
    expect(dead_code, reason = "the regions that use it come next")
)]
mod wait;

pub use gate::HeldGuard;
pub use wait::CancelToken;
