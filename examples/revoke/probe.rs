//! `revoke probe`.

use crate::Verdict;
use crate::output::{self, Failed};
use revocable_mmio::{Feature, Support};
use serde_json::json;
use std::io::{self, Write};

pub(crate) fn run(as_json: bool) -> Result<Verdict, Failed> {
    let support = Support::probe();
    let best = crate::device::build("probe", 4 << 20, crate::device::Way::Best)?.strategy();
    let mut out = io::stdout().lock();
    if as_json {
        let features: serde_json::Map<_, _> =
            Feature::all().iter_names().map(|(name, f)| (name.to_lowercase(), support.has(f).into())).collect();
        let document = json!({
            "kernel": kernel(),
            "features": features,
            "userfaultfd": support.userfaultfd(),
            "sees_kernel_faults": support.sees_kernel_faults(),
            "best_strategy": best.to_string(),
        });
        output::json(&mut out, &document)?;
    } else {
        writeln!(out, "{}\n", kernel())?;
        write!(out, "{support}")?;
        writeln!(out, "\nA region on memory of its own is revoked by: {best}")?;
    }
    Ok(Verdict::Good)
}

/// System, release and machine, from uname(2).
pub(crate) fn kernel() -> String {
    nix::sys::utsname::uname().map_or_else(
        |_| "unknown kernel".to_owned(),
        |u| [u.sysname(), u.release(), u.machine()].map(|part| part.to_string_lossy().into_owned()).join(" "),
    )
}
