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
    pub(super) why: &'static str,
    /// How long to look at it afterwards.
    pub(super) then: Duration,
}

const fn scenario(act: Act, then_ms: u64, why: &'static str) -> Scenario {
    Scenario { act, why, then: Duration::from_millis(then_ms) }
}

pub(super) const SCRIPT: [Scenario; 6] = [
    scenario(Act::Watch, 1200, "the guest's driver, the kernel and the VMM use the device's memory"),
    scenario(Act::Disable, 1800, "the guest clears PCI_COMMAND.MEM: no access gets through, no thread dies"),
    scenario(Act::Enable, 1200, "the guest sets it again: waiting accesses go on, the content is there"),
    scenario(
        Act::Reset(Duration::from_millis(1200)),
        600,
        "function-level reset: busy is not disabled, all wait, none is refused",
    ),
    scenario(Act::Flap(150), 400, "the bit flaps 150 times"),
    scenario(Act::Watch, 600, "all is as it was"),
];
