//! Events for the `tracing` feature. Without it they expand to nothing: their arguments are not even evaluated.
//!
//! All have the target `revocable_mmio`.
//!
//! | event | level | when |
//! |---|---|---|
//! | `change` (span), `revoked`, `restored` | debug | a region changes its state; with its name, and how long it took |
//! | `reset` (span and event) | debug | a region is reset |
//! | `fault`, `fault, region busy` | trace | a monitor has read a fault |
//! | `slow guard` | warn | a revocation has been waiting for guards or pins for longer than [`SLOW`]; with their threads |
//! | `degraded` | warn | a mapping could not be revoked in the intended way, and was revoked in a stricter way |
//! | `window cut off` | warn | a peer had truncated a shared region's file; with how many bytes were lost |
//! | `peer holds the window's file` | warn | a change has been waiting for a peer's system call for longer than [`SLOW`]; with the processes that have the file open for writing |
//! | `memslot degraded` | warn | KVM refused a change of a memslot |
//!
//! `fault` and `degraded` are emitted under the memory lock: a subscriber must neither touch region memory nor change
//! a region's state.

use std::time::Duration;

pub(crate) const ENABLED: bool = cfg!(feature = "tracing");

/// How long a revocation waits for guards before it is worth a warning.
pub(crate) const SLOW: Duration = Duration::from_millis(100);

/// Emits an event: `event!(WARN, region = name, "text")`.
macro_rules! event {
    ($level:ident, $($what:tt)*) => {{
        #[cfg(feature = "tracing")]
        ::tracing::event!(target: "revocable_mmio", ::tracing::Level::$level, $($what)*);
    }};
}

/// Enters a span until the end of the enclosing block.
macro_rules! span {
    ($level:ident, $($what:tt)*) => {
        #[cfg(feature = "tracing")]
        let _entered = ::tracing::span!(target: "revocable_mmio", ::tracing::Level::$level, $($what)*).entered();
    };
}
