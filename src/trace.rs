//! Events for the `tracing` feature. Without it they expand to nothing: their arguments are not even evaluated.
//!
//! | event | level | when |
//! |---|---|---|
//! | `revoke`, `restore`, `reset` | debug, a span | a region changes its state; `took_us` when it is done |
//! | `fault` | trace | a monitor answered a fault, or left it waiting |
//! | `slow guard` | warn | a revocation has been waiting for guards or pins for longer than [`SLOW`] |
//! | `degraded` | warn | a mapping could not be revoked the intended way, and a stronger way was taken |
//! | `memslot degraded` | warn | KVM refused a change of a memslot |
//!
//! None is emitted under the memory lock but `degraded`; a subscriber must not touch region memory.

use std::time::Duration;

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
