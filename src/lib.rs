//! Device memory in user space that its owner can take away from every thread, system call, virtual CPU and
//! process at once, and give back.

#[cfg(not(target_os = "linux"))]
compile_error!("revocable-mmio needs Linux: it is built on userfaultfd, mremap and membarrier");

mod access;
mod async_fault;
mod backing;
mod caller;
mod error;
pub mod fault;
mod gate;
mod guard;
mod mapping;
mod monitor;
mod owner;
mod pin;
mod policy;
mod protocol;
#[doc(hidden)]
pub mod raw_for_tests;
mod region;
mod register;
mod resolve;
mod revoke;
pub mod signal;
mod stats;
mod sync;
mod sys;
mod wait;

pub use access::{AtomicPrimitive, Primitive};
pub use async_fault::{Completion, FaultQueue, FaultToken, Submitted};
pub use backing::{Backing, OnRevoke};
pub use caller::Caller;
pub use error::{
    AccessError, BuildError, CopyError, FaultError, Holders, MapError, MonitorError, PinError, RevokeError, SubmitError,
};
pub use gate::HeldGuard;
pub use guard::Access;
pub use mapping::{MapOptions, Mapping};
pub use monitor::Monitor;
pub use owner::OwnerView;
pub use pin::Pin;
pub use policy::OnDisabled;
pub use region::{FaultAround, Region, RegionBuilder};
pub use register::Register;
pub use revoke::Strategy;
pub use stats::{BUCKETS, Latency, MonitorStats, RegionStats};
pub use sys::SysError;
#[cfg(revocable_inject)]
pub use sys::inject;
pub use sys::probe::{Feature, Support};
pub use sys::uffd::UffdSource;
pub use wait::CancelToken;
