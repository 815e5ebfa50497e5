//! The naive pid map that tests compare with: a `BTreeMap` per namespace, one step at a time.
//!
//! It says what every map guarantees. What a map may choose, the numbers themselves, it predicts for
//! [`Order::Cyclic`] and merely checks for [`Order::Any`].

use crate::{MAX_PID_NS_LEVEL, PID_MAX_LIMIT, PidError, RESERVED_PIDS};
use std::collections::BTreeMap;
use std::vec::Vec;

/// How a map chooses numbers.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Order {
    /// The next free one after the last, cyclically.
    Cyclic,
    /// Any free one; low ones, below the reserved, may be out of reach.
    Any,
}

pub struct Namespace {
    pub level: u32,
    pub parent: Option<usize>,
    pub pid_max: u32,
    pub adding: bool,
    pub has_reaper: bool,
    cursor: u32,
    /// Number to the index of the pid.
    pub taken: BTreeMap<u32, usize>,
}

pub struct Pid {
    pub ns: usize,
    /// Leaf first.
    pub numbers: Vec<u32>,
    pub alive: bool,
}

pub struct Model {
    order: Order,
    pub namespaces: Vec<Namespace>,
    pub pids: Vec<Pid>,
}

impl Model {
    pub fn new(order: Order, pid_max: u32) -> Self {
        let mut model = Model {
            order,
            namespaces: Vec::new(),
            pids: Vec::new(),
        };
        model.push_ns(None, 0, pid_max);
        model
    }

    fn push_ns(&mut self, parent: Option<usize>, level: u32, pid_max: u32) {
        self.namespaces.push(Namespace {
            level,
            parent,
            pid_max,
            adding: true,
            has_reaper: false,
            cursor: 0,
            taken: BTreeMap::new(),
        });
    }

    /// False: too deep.
    pub fn new_child(&mut self, parent: usize) -> bool {
        let level = self.namespaces[parent].level + 1;
        if level > MAX_PID_NS_LEVEL {
            return false;
        }
        self.push_ns(Some(parent), level, PID_MAX_LIMIT);
        true
    }

    /// Indices of a namespace and its ancestors.
    pub fn chain(&self, ns: usize) -> Vec<usize> {
        let mut chain = std::vec![ns];
        while let Some(up) = self.namespaces[*chain.last().unwrap()].parent {
            chain.push(up);
        }
        chain
    }

    /// The first free number of [a, b).
    fn first_free(&self, ns: usize, a: u32, b: u32) -> Option<u32> {
        (a..b).find(|nr| !self.namespaces[ns].taken.contains_key(nr))
    }

    /// One allocation. `got` is what the map under test returned, numbers leaf first.
    pub fn alloc(
        &mut self,
        ns: usize,
        tids: &[i32],
        capable: impl Fn(u32) -> bool,
        got: &Result<Vec<u32>, PidError>,
    ) {
        let want = self.try_alloc(ns, tids, capable, got);
        match (&want, got) {
            (Ok(numbers), Ok(_)) => {
                for (&ns, &nr) in self.chain(ns).iter().zip(numbers) {
                    self.namespaces[ns].taken.insert(nr, self.pids.len());
                }
                self.pids.push(Pid {
                    ns,
                    numbers: numbers.clone(),
                    alive: true,
                });
            }
            (Err(a), Err(b)) => assert_eq!(a, b, "another error"),
            _ => panic!("the model says {want:?}, the map {got:?}"),
        }
        if let (Ok(want), Ok(got)) = (&want, got) {
            assert_eq!(want, got, "other numbers");
        }
    }

    fn try_alloc(
        &mut self,
        ns: usize,
        tids: &[i32],
        capable: impl Fn(u32) -> bool,
        got: &Result<Vec<u32>, PidError>,
    ) -> Result<Vec<u32>, PidError> {
        let chain = self.chain(ns);
        if tids.len() > chain.len() {
            return Err(PidError::Invalid);
        }
        for (&tid, &ns) in tids.iter().zip(&chain) {
            if tid < 1 || tid as u32 >= self.namespaces[ns].pid_max {
                return Err(PidError::Invalid);
            }
            if !capable(self.namespaces[ns].level) {
                return Err(PidError::Perm);
            }
        }
        if self.namespaces[ns].adding && self.namespaces[ns].taken.is_empty() {
            self.namespaces[ns].cursor = 0;
        }
        let mut numbers = Vec::new();
        for (i, &ns) in chain.iter().enumerate() {
            let leaf_starts_over = i == 0 && {
                let n = &self.namespaces[ns];
                n.adding && !n.has_reaper && n.taken.is_empty()
            };
            let nr = match tids.get(i) {
                Some(&tid) if self.namespaces[ns].taken.contains_key(&(tid as u32)) => {
                    return Err(PidError::Exists);
                }
                Some(&tid) => tid as u32,
                None => self.automatic(ns, i, got)?,
            };
            let first = match (self.order, got, tids.get(i)) {
                // Which number it was that failed later is not known.
                (Order::Any, Err(_), None) => leaf_starts_over || *got != Err(PidError::Invalid),
                _ => nr == 1,
            };
            assert!(
                got.is_err() || !leaf_starts_over || !tids.is_empty() || nr == 1,
                "an init tried again is 1"
            );
            if !first && !self.namespaces[ns].has_reaper {
                return Err(PidError::Invalid);
            }
            numbers.push(nr);
        }
        if chain.iter().any(|&ns| !self.namespaces[ns].adding) {
            return Err(PidError::NoMemory);
        }
        Ok(numbers)
    }

    fn automatic(
        &mut self,
        ns: usize,
        at: usize,
        got: &Result<Vec<u32>, PidError>,
    ) -> Result<u32, PidError> {
        let (cursor, max) = (self.namespaces[ns].cursor, self.namespaces[ns].pid_max);
        let min = if cursor > RESERVED_PIDS {
            RESERVED_PIDS
        } else {
            1
        };
        let next = self
            .first_free(ns, cursor.max(min), max)
            .or_else(|| self.first_free(ns, min, max));
        let chosen = match (self.order, got) {
            (Order::Any, Ok(numbers)) => {
                let nr = numbers[at];
                assert!(nr >= 1 && nr < max, "{nr} is out of range");
                assert!(
                    !self.namespaces[ns].taken.contains_key(&nr),
                    "INV-PID-1: {nr}"
                );
                Some(nr)
            }
            // Whether the map's cursor has passed the reserved numbers is its own affair.
            (Order::Any, Err(PidError::Exhausted)) => self.first_free(ns, RESERVED_PIDS, max),
            (Order::Any, Err(_)) => self.first_free(ns, 1, max),
            _ => next,
        };
        let nr = chosen.ok_or(PidError::Exhausted)?;
        self.namespaces[ns].cursor = nr + 1;
        Ok(nr)
    }

    pub fn free(&mut self, pid: usize) {
        assert!(std::mem::take(&mut self.pids[pid].alive));
        for (ns, nr) in self
            .chain(self.pids[pid].ns)
            .into_iter()
            .zip(&self.pids[pid].numbers)
        {
            assert_eq!(self.namespaces[ns].taken.remove(nr), Some(pid));
        }
    }
}
