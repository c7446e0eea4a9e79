//! The acts, and their order.

use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// No change: all actors use the region.
    Watch,
    Disable,
    Enable,
    /// A reset that keeps the region busy for this time.
    Reset(Duration),
    /// This many disables and enables, a millisecond apart.
    Flap(u32),
}

impl Act {
    pub(super) fn call(self) -> &'static str {
        match self {
            Act::Watch => "(nothing)",
            Act::Disable => "disable()",
            Act::Enable => "enable()",
            Act::Reset(_) => "reset(|device| ...)",
            Act::Flap(_) => "disable(), enable(), ...",
        }
    }
}

pub(super) struct Scenario {
    pub(super) act: Act,
    why: &'static str,
    /// In place of `why`, if another process is among the actors.
    why_with_peer: Option<&'static str>,
    /// How long to look at it afterwards.
    pub(super) then: Duration,
}

impl Scenario {
    pub(super) fn why(&self, has_peer: bool) -> &'static str {
        self.why_with_peer.filter(|_| has_peer).unwrap_or(self.why)
    }

    const fn with_peer(self, why: &'static str) -> Self {
        Self { why_with_peer: Some(why), ..self }
    }
}

const fn scenario(act: Act, then_ms: u64, why: &'static str) -> Scenario {
    Scenario { act, why, why_with_peer: None, then: Duration::from_millis(then_ms) }
}

pub(super) const SCRIPT: [Scenario; 6] = [
    scenario(Act::Watch, 1200, "the guest's driver, the kernel and the VMM use the device's memory")
        .with_peer("driver, kernel, VMM and another process use the device's memory"),
    scenario(Act::Disable, 1800, "the guest clears PCI_COMMAND.MEM: no access gets through, none kills")
        .with_peer("the guest clears PCI_COMMAND.MEM: no access of anyone gets through"),
    scenario(Act::Enable, 1200, "the guest sets it again: waiting accesses go on, the content is there"),
    scenario(
        Act::Reset(Duration::from_millis(1200)),
        600,
        "function-level reset: busy is not disabled, all wait, none is refused",
    )
    .with_peer("function-level reset: all wait here, the other process gets SIGBUS"),
    scenario(Act::Flap(150), 400, "the bit flaps 150 times"),
    scenario(Act::Watch, 600, "all is as it was"),
];
