//! Quantiles, and how figures are written. The benches use this file too.

use std::time::Duration;

/// The least sample that `share` of all samples do not exceed. `None` without samples.
#[expect(clippy::cast_possible_truncation, reason = "not above the number of samples")]
pub(crate) fn quantile<T: Copy>(ascending: &[T], share: f64) -> Option<T> {
    let rank = (share * ascending.len() as f64).ceil() as usize;
    ascending.get(rank.max(1) - 1).copied()
}

/// A duration as [`nanos`] writes it.
pub(crate) fn duration(d: Duration) -> String {
    nanos(d.as_secs_f64() * 1e9)
}

/// Three significant digits and a unit: `0.46 ns`, `418 ns`, `1.25 µs`, `38.1 ms`.
pub(crate) fn nanos(ns: f64) -> String {
    let (value, unit) = match ns {
        n if n < 1e3 => (n, "ns"),
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
