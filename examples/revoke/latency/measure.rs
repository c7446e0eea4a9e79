//! The measurements. Every duration is kept, so percentiles are exact.

use crate::figures;
use crate::output::Failed;
use revocable_mmio::{FaultAround, MapOptions, Mapping, Region, Strategy, Support};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The size in bytes of the region whose pages are faulted in one by one.
const FAULT_REGION: usize = 2 << 20;
/// Shares of all samples: the median, and where the tail begins.
pub(super) const QUANTILES: [(&str, f64); 3] = [("p50", 0.50), ("p90", 0.90), ("p99", 0.99)];

/// The operation that is timed. Rows are in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum What {
    Fault,
    Disable,
    Enable,
}

impl What {
    pub(super) fn title(self) -> &'static str {
        match self {
            What::Fault => "one fault: a store to a 4 KiB page that is not mapped",
            What::Disable => "disable()",
            What::Enable => "enable()",
        }
    }

    fn key(self) -> &'static str {
        match self {
            What::Fault => "fault",
            What::Disable => "disable",
            What::Enable => "enable",
        }
    }
}

/// The durations of one operation.
pub(super) struct Series {
    pub(super) what: What,
    pub(super) name: String,
    /// In nanoseconds, ascending, at least one.
    pub(super) samples: Vec<u64>,
}

impl Series {
    /// `None` for no samples at all.
    fn new(what: What, name: impl Into<String>, mut samples: Vec<u64>) -> Option<Self> {
        samples.sort_unstable();
        (!samples.is_empty()).then(|| Self { what, name: name.into(), samples })
    }

    /// The sample that a share `share` of all does not exceed.
    pub(super) fn quantile(&self, share: f64) -> f64 {
        figures::quantile(&self.samples, share).expect("at least one sample") as f64
    }

    pub(super) fn most(&self) -> f64 {
        self.quantile(1.0)
    }

    /// How many samples fall into each of `bins` parts of the decades from `10^from` to `10^to` ns.
    #[expect(clippy::cast_possible_truncation, reason = "below `bins`")]
    pub(super) fn histogram(&self, from: f64, to: f64, bins: usize) -> Vec<usize> {
        let mut counts = vec![0; bins];
        for ns in &self.samples {
            let at = ((*ns).max(1) as f64).log10();
            let bin = ((at - from) / (to - from) * bins as f64).floor().clamp(0.0, bins as f64 - 1.0);
            counts[bin as usize] += 1;
        }
        counts
    }

    pub(super) fn json(&self) -> Value {
        let mut row =
            json!({ "what": self.what.key(), "name": self.name, "samples": self.samples.len(), "max_ns": self.most() });
        for (key, share) in QUANTILES {
            row[format!("{key}_ns")] = self.quantile(share).into();
        }
        row
    }
}

fn timed<R>(samples: &mut Vec<u64>, what: impl FnOnce() -> R) -> R {
    let since = Instant::now();
    let done = what();
    samples.push(u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX));
    done
}

/// Faults in one page at a time: by a monitor, by the faulting thread itself, and by the kernel alone.
pub(super) fn faults(spend: Duration) -> Result<Vec<Series>, Failed> {
    let zap = |options| -> Result<Option<Vec<u64>>, Failed> {
        let region = Region::builder(FAULT_REGION).strategy(Strategy::Zap).fault_around(FaultAround::Pages(1)).build();
        match region {
            Ok(region) => faults_of(&region, options, spend).map(Some),
            // Not possible here: see `Support`.
            Err(_) if !Support::current().userfaultfd() => Ok(None),
            Err(e) => Err(e.into()),
        }
    };
    let kernel = |strategy| -> Result<_, Failed> {
        faults_of(&Region::builder(FAULT_REGION).strategy(strategy).build()?, MapOptions::new(), spend).map(Some)
    };
    let rows = [
        ("zap, by a monitor", zap(MapOptions::new())?),
        ("zap, accessors_only()", zap(MapOptions::new().accessors_only())?),
        ("replace, by the kernel", kernel(Strategy::Replace)?),
        ("withdraw, by the kernel", kernel(Strategy::Withdraw)?),
    ];
    Ok(rows.into_iter().filter_map(|(name, samples)| Series::new(What::Fault, name, samples?)).collect())
}

fn faults_of(region: &Region, options: MapOptions, spend: Duration) -> Result<Vec<u64>, Failed> {
    populate(region)?;
    let mapping = region.map(options)?;
    let mut samples = Vec::new();
    let until = Instant::now() + spend;
    while Instant::now() < until {
        region.disable()?;
        region.enable()?;
        for page in 0..region.len() / region.page_size() {
            timed(&mut samples, || mapping.write(page * region.page_size(), page as u64))?;
        }
    }
    Ok(samples)
}

/// `disable()` and `enable()` of a region with one mapping, all of it in the page tables each time.
pub(super) fn changes(region: &Region, spend: Duration) -> Result<Vec<Series>, Failed> {
    populate(region)?;
    let mapping = region.map(MapOptions::new())?;
    let (mut disables, mut enables) = (Vec::new(), Vec::new());
    let until = Instant::now() + spend;
    while Instant::now() < until {
        touch(&mapping, region.page_size())?;
        timed(&mut disables, || region.disable())?;
        timed(&mut enables, || region.enable())?;
    }
    let name = format!("{}, {}", region.strategy(), figures::bytes(region.len()));
    let rows = [(What::Disable, disables), (What::Enable, enables)];
    Ok(rows.into_iter().filter_map(|(what, samples)| Series::new(what, name.clone(), samples)).collect())
}

/// Gives the file its pages. A fresh memfd makes them at the first access, which must not be timed.
fn populate(region: &Region) -> Result<(), Failed> {
    Ok(region.owner().fill(0, 1, region.len())?)
}

fn touch(mapping: &Mapping, page: usize) -> Result<(), Failed> {
    for at in (0..mapping.len()).step_by(page) {
        mapping.write(at, 1_u8)?;
    }
    Ok(())
}
