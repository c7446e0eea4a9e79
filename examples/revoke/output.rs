//! JSON documents, and readers of the output that have gone away.

use std::error::Error;
use std::io;
use std::time::Duration;

pub(crate) type Failed = Box<dyn Error + Send + Sync>;

/// True if the reader of the standard output has gone away (`revoke ... | head -1`).
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

/// A duration for a JSON document: nanoseconds, or null.
pub(crate) fn json_nanos(d: Option<Duration>) -> serde_json::Value {
    d.and_then(|d| u64::try_from(d.as_nanos()).ok()).into()
}
