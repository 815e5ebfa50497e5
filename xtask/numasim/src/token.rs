//! Who runs: the CPU that is furthest behind in simulated time.
//!
//! One CPU has the token. It keeps it until its clock passes the next CPU's by the slack; then that one gets it. Slack
//! at or below the least cost of reaching another CPU changes no order that matters, and saves most switches.
//!
//! ```text
//!             grant                      park                 line written, interrupt
//!   Ready ────────────► Running ───────────────────► Parked ──────────────► Ready
//!     ▲  ◄──────────────   │  │      meet                                     ▲
//!     │      give up       │  └──────────────────► Meeting ── all, interrupt ─┤
//!     │                    │ halt                                             │
//!     │      arrived       ▼      interrupt                                   │
//!     └────── Waking ◄── Halted                                               │
//! ```
//! Between `Waking` and `Ready` lies the time that QEMU's thread takes to get going. Nobody may run meanwhile, or what
//! the host does in that time would decide which of two interrupts comes first (INV-SIM-4).

use crate::spin;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

/// Where a CPU is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Waits for the token.
    Ready,
    /// Has it.
    Running,
    /// Spins on a line in simulated time, sleeps in the host's.
    Parked,
    /// Waits for other CPUs.
    Meeting,
    /// Halted; with `true`, an ordinary interrupt wakes it.
    Halted(bool),
    /// Was interrupted while halted; its thread is on the way.
    Waking,
}

/// The right to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Whose.
    pub cpu: usize,
    /// Its clock.
    pub clock: u64,
    /// It gives up when its clock gets here.
    pub limit: u64,
}

/// A CPU that a write or an interrupt took out of its spinning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Woken {
    /// Its number.
    pub cpu: usize,
    /// The line it read.
    pub line: u64,
    /// The code that spun.
    pub code: u64,
    /// For how many cycles.
    pub cycles: u64,
}

#[derive(Clone, Debug)]
struct Cpu {
    state: State,
    /// While it does not run.
    clock: u64,
    parked: Parking,
    /// The line it spun on was written: it has to look at it before it goes on.
    looks: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Parking {
    line: u64,
    code: u64,
    period: u64,
}

/// All CPUs' places.
#[derive(Clone, Debug)]
pub struct Token {
    cpus: Vec<Cpu>,
    ready: BinaryHeap<Reverse<(u64, usize)>>,
    running: Option<usize>,
    waiters: HashMap<u64, Vec<usize>>,
    meeting: Vec<usize>,
    waking: usize,
    /// How far the running CPU may get ahead.
    pub slack: u64,
}

impl Token {
    /// `running` runs at time 0; of the others, `halted` says whether interrupts reach them.
    pub fn new(running: usize, halted: &[bool], slack: u64) -> Self {
        let cpus = halted.iter().enumerate().map(|(cpu, &wakeable)| Cpu {
            state: if cpu == running {
                State::Running
            } else {
                State::Halted(wakeable)
            },
            clock: 0,
            parked: Parking::default(),
            looks: false,
        });
        Self {
            cpus: cpus.collect(),
            ready: BinaryHeap::new(),
            running: Some(running),
            waiters: HashMap::new(),
            meeting: Vec::new(),
            waking: 0,
            slack,
        }
    }

    /// Where `cpu` is.
    pub fn state(&self, cpu: usize) -> State {
        self.cpus[cpu].state
    }

    /// Who has the token.
    pub fn running(&self) -> Option<usize> {
        self.running
    }

    /// Threads on the way: see the module's text.
    pub fn waking(&self) -> usize {
        self.waking
    }

    /// Until when the running CPU may run.
    pub fn limit(&self) -> u64 {
        self.ready
            .peek()
            .map_or(u64::MAX >> 3, |Reverse((clock, _))| clock + self.slack + 1)
    }

    /// The running CPU has reached `clock`; it goes on if it may, else the next one runs.
    pub fn give_up(&mut self, clock: u64) -> Grant {
        let cpu = self.stop(State::Ready, clock);
        self.ready.push(Reverse((clock, cpu)));
        self.grant().expect("the CPU that gave up is ready")
    }

    /// The running CPU halts.
    pub fn halt(&mut self, clock: u64, wakeable: bool) -> Option<Grant> {
        self.stop(State::Halted(wakeable), clock);
        self.grant()
    }

    /// The running CPU spins on `line` every `period` cycles.
    pub fn park(&mut self, clock: u64, line: u64, code: u64, period: u64) -> Option<Grant> {
        let cpu = self.stop(State::Parked, clock);
        self.cpus[cpu].parked = Parking { line, code, period };
        self.waiters.entry(line).or_default().push(cpu);
        self.grant()
    }

    /// The running CPU waits until `wanted` CPUs do. When they do, all of them go on at the latest one's time; returned
    /// with that time and the next grant.
    pub fn meet(
        &mut self,
        clock: u64,
        wanted: usize,
    ) -> (Option<(Vec<usize>, u64)>, Option<Grant>) {
        let cpu = self.stop(State::Meeting, clock);
        self.meeting.push(cpu);
        let mut met = None;
        if self.meeting.len() >= wanted {
            let mut all = core::mem::take(&mut self.meeting);
            all.sort_unstable();
            let time = all
                .iter()
                .map(|&c| self.cpus[c].clock)
                .max()
                .unwrap_or(clock);
            all.iter().for_each(|&c| self.make_ready(c, time));
            met = Some((all, time));
        }
        (met, self.grant())
    }

    /// `line` was written at `clock`: whoever spins on it looks again.
    pub fn written(&mut self, line: u64, clock: u64, mut woken: impl FnMut(Woken)) {
        for cpu in self.waiters.remove(&line).unwrap_or_default() {
            woken(self.unpark(cpu, clock));
            self.cpus[cpu].looks = true;
        }
    }

    /// The line that `cpu`, which was just granted the token, looks at first, and its code: it spun on it. Whoever asks
    /// does that for it, which saves waking its thread before the line is there.
    pub fn take_look(&mut self, cpu: usize) -> Option<(u64, u64)> {
        let here = &mut self.cpus[cpu];
        core::mem::take(&mut here.looks).then_some((here.parked.line, here.parked.code))
    }

    fn unpark(&mut self, cpu: usize, clock: u64) -> Woken {
        let (slept, Parking { line, code, period }) = (self.cpus[cpu].clock, self.cpus[cpu].parked);
        let wakes = spin::wakes_at(slept, clock, period);
        self.make_ready(cpu, wakes);
        Woken {
            cpu,
            line,
            code,
            cycles: wakes - slept,
        }
    }

    /// An interrupt gets to `cpu` at `clock`. Returns whether its thread now has to wake up, which
    /// [`arrived`](Self::arrived) ends, and what spinning it ended.
    pub fn interrupt(&mut self, cpu: usize, clock: u64, nmi: bool) -> (bool, Option<Woken>) {
        match self.cpus[cpu].state {
            State::Halted(wakeable) if wakeable || nmi => {
                let here = &mut self.cpus[cpu];
                here.state = State::Waking;
                here.clock = here.clock.max(clock);
                self.waking += 1;
                (true, None)
            }
            State::Parked => {
                let line = self.cpus[cpu].parked.line;
                if let Some(list) = self.waiters.get_mut(&line) {
                    list.retain(|c| *c != cpu);
                }
                (false, Some(self.unpark(cpu, clock)))
            }
            State::Meeting => {
                self.meeting.retain(|c| *c != cpu);
                let time = self.cpus[cpu].clock.max(clock);
                self.make_ready(cpu, time);
                (false, None)
            }
            State::Halted(_) | State::Ready | State::Running | State::Waking => (false, None),
        }
    }

    /// The thread of a CPU that was woken is there.
    pub fn arrived(&mut self, cpu: usize) {
        debug_assert_eq!(self.cpus[cpu].state, State::Waking);
        self.waking -= 1;
        self.make_ready(cpu, self.cpus[cpu].clock);
    }

    /// The thread of a CPU that was woken went back to sleep: nothing was there for it.
    pub fn overslept(&mut self, cpu: usize, wakeable: bool) {
        debug_assert_eq!(self.cpus[cpu].state, State::Waking);
        self.waking -= 1;
        self.cpus[cpu].state = State::Halted(wakeable);
    }

    /// A halted CPU's thread runs although nobody sent an interrupt: it goes on at the time of whoever is next.
    pub fn intruder(&mut self, cpu: usize) {
        let now = self.ready.peek().map_or(0, |Reverse((clock, _))| *clock);
        let clock = self.cpus[cpu].clock.max(now);
        self.make_ready(cpu, clock);
    }

    /// Lets the next CPU run when none does and nobody is on the way.
    pub fn grant_if_idle(&mut self) -> Option<Grant> {
        if self.running.is_some() || self.waking > 0 {
            None
        } else {
            self.grant()
        }
    }

    fn make_ready(&mut self, cpu: usize, clock: u64) {
        let here = &mut self.cpus[cpu];
        debug_assert!(here.state != State::Ready && clock >= here.clock);
        (here.state, here.clock) = (State::Ready, clock);
        self.ready.push(Reverse((clock, cpu)));
    }

    fn stop(&mut self, state: State, clock: u64) -> usize {
        let cpu = self.running.take().expect("a CPU runs");
        let here = &mut self.cpus[cpu];
        debug_assert!(clock >= here.clock, "INV-SIM-2");
        (here.state, here.clock) = (state, clock);
        cpu
    }

    fn grant(&mut self) -> Option<Grant> {
        let Reverse((clock, cpu)) = self.ready.pop()?;
        self.cpus[cpu].state = State::Running;
        self.running = Some(cpu);
        Some(Grant {
            cpu,
            clock,
            limit: self.limit(),
        })
    }

    /// What each CPU does, for a person who looks at a machine that stands still.
    pub fn describe(&self) -> String {
        let count = |f: fn(&State) -> bool| self.cpus.iter().filter(|c| f(&c.state)).count();
        format!(
            "running {:?}, ready {}, spinning {}, meeting {}, halted {}, waking {}",
            self.running,
            count(|s| *s == State::Ready),
            count(|s| *s == State::Parked),
            count(|s| *s == State::Meeting),
            count(|s| matches!(s, State::Halted(_))),
            self.waking
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Four CPUs, all of them ready but 0, which runs.
    fn four(slack: u64) -> Token {
        let mut t = Token::new(0, &[true; 4], slack);
        for cpu in 1..4 {
            assert_eq!(t.interrupt(cpu, 0, false), (true, None));
            t.arrived(cpu);
        }
        t
    }

    #[test]
    fn the_one_behind_runs() {
        let mut t = four(10);
        assert_eq!(t.limit(), 11);
        assert_eq!(
            t.give_up(11),
            Grant {
                cpu: 1,
                clock: 0,
                limit: 11
            }
        );
        assert_eq!(
            t.give_up(30),
            Grant {
                cpu: 2,
                clock: 0,
                limit: 11
            }
        );
        assert_eq!(
            t.give_up(20),
            Grant {
                cpu: 3,
                clock: 0,
                limit: 22
            }
        );
        assert_eq!(
            t.give_up(25),
            Grant {
                cpu: 0,
                clock: 11,
                limit: 31
            }
        );
        assert_eq!(
            t.give_up(20),
            Grant {
                cpu: 0,
                clock: 20,
                limit: 31
            },
            "of equals, the first"
        );
    }

    #[test]
    fn a_spinner_wakes_when_its_line_is_written() {
        let mut t = four(0);
        assert_eq!(t.park(100, 7, 0xc0de, 40).unwrap().cpu, 1);
        let mut woken = vec![];
        t.written(8, 150, |w| woken.push(w));
        assert!(woken.is_empty());
        t.written(7, 150, |w| woken.push(w));
        assert_eq!(
            woken,
            [Woken {
                cpu: 0,
                line: 7,
                code: 0xc0de,
                cycles: 80
            }]
        );
        assert_eq!(t.state(0), State::Ready);
        assert_eq!(t.give_up(500).cpu, 2);
        assert_eq!(t.take_look(2), None, "it did not spin");
        assert_eq!(t.give_up(500).cpu, 3);
        let grant = t.give_up(500);
        assert_eq!((grant.cpu, grant.clock), (0, 180));
        assert_eq!(t.take_look(0), Some((7, 0xc0de)));
        assert_eq!(t.take_look(0), None, "once");
        t.written(7, 150, |_| unreachable!("it is gone"));
    }

    #[test]
    fn interrupts_reach_every_state() {
        let mut t = four(0);
        assert_eq!(t.halt(5, true).unwrap().cpu, 1);
        assert_eq!(t.halt(5, false).unwrap().cpu, 2);
        assert_eq!(t.park(6, 7, 1, 10).unwrap().cpu, 3);
        assert_eq!(t.interrupt(0, 50, false), (true, None));
        assert_eq!(
            t.interrupt(0, 60, false),
            (false, None),
            "already on the way"
        );
        assert_eq!(
            t.interrupt(1, 50, false),
            (false, None),
            "interrupts are off"
        );
        assert_eq!(
            t.interrupt(1, 50, true),
            (true, None),
            "an NMI is never off"
        );
        assert_eq!(t.interrupt(2, 50, false).1.unwrap().cycles, 50);
        assert_eq!(t.interrupt(3, 50, false), (false, None), "it runs");
        assert_eq!(t.waking(), 2);
        assert_eq!(t.grant_if_idle(), None);
        t.arrived(0);
        t.overslept(1, false);
        assert_eq!((t.waking(), t.state(1)), (0, State::Halted(false)));
        assert_eq!(
            t.halt(9, true).unwrap(),
            Grant {
                cpu: 0,
                clock: 50,
                limit: 57
            }
        );
    }

    #[test]
    fn meetings_end_together_and_can_be_left() {
        let mut t = four(0);
        let (met, next) = t.meet(10, 3);
        assert!(met.is_none() && next.unwrap().cpu == 1);
        assert_eq!(t.interrupt(0, 90, false), (false, None));
        assert_eq!(t.state(0), State::Ready);
        assert!(t.meet(20, 3).0.is_none());
        assert!(t.meet(30, 3).0.is_none());
        let (met, next) = t.meet(40, 3);
        assert_eq!(met.unwrap(), (vec![1, 2, 3], 40));
        assert_eq!(
            next.unwrap(),
            Grant {
                cpu: 1,
                clock: 40,
                limit: 41
            }
        );
    }

    #[test]
    fn nobody_left() {
        let mut t = Token::new(0, &[true], 0);
        assert_eq!(t.limit(), u64::MAX >> 3);
        assert_eq!(t.halt(7, true), None);
        assert_eq!((t.running(), t.grant_if_idle()), (None, None));
        t.intruder(0);
        assert_eq!(t.grant_if_idle().unwrap().clock, 7);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]
        /// At most one runs, no clock goes back, and nobody who is ready is forgotten.
        #[test]
        fn it_is_fair(steps in prop::collection::vec((0u8..5, 0u64..200, 0u64..3, 0usize..4), 1..150)) {
            let mut t = four(50);
            let mut clocks = [0u64; 4];
            let mut now = Some(Grant { cpu: 0, clock: 0, limit: t.limit() });
            for (what, cycles, line, target) in steps {
                let Some(grant) = now else { break };
                prop_assert!(grant.clock >= clocks[grant.cpu]);
                let clock = grant.clock + cycles;
                clocks[grant.cpu] = clock;
                now = match what {
                    0 => Some(t.give_up(clock)),
                    1 => t.park(clock, line, 0, 1 + cycles),
                    2 => t.halt(clock, true),
                    3 => t.meet(clock, 3).1,
                    _ => {
                        if target != grant.cpu && t.interrupt(target, clock + 100, false).0 {
                            t.arrived(target);
                        }
                        t.written(line, clock, |_| ());
                        Some(t.give_up(clock))
                    }
                };
                let running = (0..4).filter(|c| t.state(*c) == State::Running).count();
                prop_assert_eq!(running, usize::from(now.is_some()));
                let ready = (0..4).filter(|c| t.state(*c) == State::Ready).count();
                prop_assert_eq!(ready, t.ready.len());
                prop_assert!(now.is_some() || ready == 0);
            }
        }
    }
}
