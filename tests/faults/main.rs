//! Faults and monitors: an access that cannot be served at once waits for the right event, and ends as documented.

#[macro_use]
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "each test binary uses its part")]
mod support;

mod async_faults;
mod blocked_system_calls;
mod dead_monitor;
mod fault_flags;
mod monitor_floods;
mod monitors;
mod panicking_wakers;
mod reset_and_monitor;
mod sandboxed_start;
