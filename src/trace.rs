//! Events for the `tracing` feature. Without it they expand to nothing: their arguments are not even evaluated.
//!
//! The page [`guide::tracing`](crate::guide::tracing) has their table.

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
