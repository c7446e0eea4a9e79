//! The kernel, other processes and the rest of the process act on mappings: G7, memory pressure, forks, filters.

#[macro_use]
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "each test binary uses its part")]
mod support;

mod bypasses;
mod forked_children;
#[cfg(all(feature = "kvm", target_arch = "x86_64"))]
mod kvm_guest;
mod locked_memory;
mod nothing_stands_there;
mod pressure;
#[cfg(target_arch = "x86_64")]
mod seccomp;
mod without_proc;
