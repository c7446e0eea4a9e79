//! The region that a subcommand works on, from its command line.

use crate::output::Failed;
use clap::ValueEnum;
use revocable_mmio::{OnDisabled, Region, RegionBuilder, Strategy};

/// `--strategy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Way {
    /// The best that works here.
    #[default]
    Best,
    /// Drop page-table entries, resolve faults by userfaultfd.
    Zap,
    /// Move page tables aside and back.
    Detach,
    /// Replace the mapping and map the file anew.
    Replace,
    /// Empty the file itself, also for other processes, and fill it again.
    Withdraw,
}

impl Way {
    pub(crate) fn apply(self, builder: RegionBuilder) -> RegionBuilder {
        match self {
            Way::Best => builder,
            Way::Zap => builder.strategy(Strategy::Zap),
            Way::Detach => builder.strategy(Strategy::Detach),
            Way::Replace => builder.strategy(Strategy::Replace),
            Way::Withdraw => builder.strategy(Strategy::Withdraw),
        }
    }
}

pub(crate) fn build(name: &str, len: usize, way: Way) -> Result<Region, Failed> {
    Ok(way.apply(Region::builder(len).name(name)).build()?)
}

/// A region that other processes map, with what they get while it is disabled.
pub(crate) fn build_shared(name: &str, len: usize, peers: OnDisabled) -> Result<Region, Failed> {
    Ok(Region::builder(len).name(name).shared(peers).build()?)
}

/// A size in bytes, for clap: `4096`, `64K`, `2M`, `1G`, with or without `iB`.
pub(crate) fn size(text: &str) -> Result<usize, String> {
    let number = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[number.len()..].to_ascii_lowercase().trim_end_matches("ib") {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        _ => return Err("give bytes, or a number with K, M or G".to_owned()),
    };
    let bytes = number.parse::<usize>().ok().and_then(|n| n.checked_mul(1 << shift));
    match bytes {
        Some(n) if n > 0 => Ok(n),
        _ => Err("give a number above 0 that fits an address space".to_owned()),
    }
}
