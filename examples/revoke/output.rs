//! How numbers look, and what a closed pipe is.

use std::error::Error;
use std::io;
use std::time::Duration;

pub(crate) type Failed = Box<dyn Error + Send + Sync>;

/// Has the reader of the standard output gone away (`revoke ... | head -1`)?
pub(crate) fn is_closed_pipe(e: &(dyn Error + 'static)) -> bool {
    let kind = e.downcast_ref::<io::Error>().map(io::Error::kind);
    let in_json = e.downcast_ref::<serde_json::Error>().and_then(serde_json::Error::io_error_kind);
    kind == Some(io::ErrorKind::BrokenPipe) || in_json == Some(io::ErrorKind::BrokenPipe)
}

/// Prints one JSON document and ends its line.
pub(crate) fn json(out: &mut impl io::Write, document: &serde_json::Value) -> Result<(), Failed> {
    serde_json::to_writer_pretty(&mut *out, document)?;
    writeln!(out)?;
    Ok(())
}

/// Three significant digits and a unit: `418 ns`, `1.25 µs`, `38.1 ms`.
pub(crate) fn duration(d: Duration) -> String {
    nanos(d.as_secs_f64() * 1e9)
}

pub(crate) fn nanos(ns: f64) -> String {
    let (value, unit) = match ns {
        n if n < 1e3 => return format!("{n:.0} ns"),
        n if n < 1e6 => (n / 1e3, "µs"),
        n if n < 1e9 => (n / 1e6, "ms"),
        n => (n / 1e9, "s"),
    };
    let decimals = match value {
        v if v < 10.0 => 2,
        v if v < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$} {unit}")
}

/// `1,234,567`.
pub(crate) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1,234`, `15.0 M`: short, for a line that is rewritten.
pub(crate) fn rounded(n: u64) -> String {
    match n {
        0..100_000 => count(n),
        _ => format!("{:.1} M", n as f64 / 1e6),
    }
}

/// `2 MiB`, `1 GiB`, `4 KiB`.
pub(crate) fn bytes(n: usize) -> String {
    for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if n >= 1 << shift && n % (1 << shift) == 0 {
            return format!("{} {unit}", n >> shift);
        }
    }
    format!("{n} bytes")
}

/// A duration for a JSON document: nanoseconds, or null.
pub(crate) fn json_nanos(d: Option<Duration>) -> serde_json::Value {
    d.and_then(|d| u64::try_from(d.as_nanos()).ok()).into()
}
