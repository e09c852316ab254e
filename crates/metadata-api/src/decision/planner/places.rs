//! Which captures may run what, and how much each has. No step costs as much as all captures times all changefeeds: the
//! captures that an affinity admits are found once, and kept in the order of their loads.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::super::by_id::ById;
use super::memory::Calm;
use crate::model::{CaptureId, CaptureInfo, CaptureState, Placement, ScheduleSnapshot};

/// An alive capture, by its place in [`Places::captures`].
pub(super) type Place = usize;
/// The captures that one affinity admits, by its place in [`Places::pools`].
pub(super) type Pool = usize;

/// The alive captures and their loads.
pub(super) struct Places<'a> {
    captures: Vec<Alive<'a>>,
    by_id: ById<Place>,
    by_label: HashMap<(&'a str, &'a str), Vec<Place>>,
    pools: Vec<BTreeSet<(bool, u64, CaptureId, Place)>>,
    pool_of: HashMap<&'a BTreeMap<String, String>, Pool>,
    /// The pool of what asks for no label: of nearly all.
    everybody: Option<Pool>,
}

struct Alive<'a> {
    info: &'a CaptureInfo,
    load: u64,
    shunned: bool,
    settled: bool,
    pools: Vec<Pool>,
}

impl<'a> Places<'a> {
    pub fn new(snapshot: &'a ScheduleSnapshot, calm: &Calm) -> Self {
        let captures: Vec<_> = snapshot
            .captures
            .iter()
            .filter(|info| info.state == CaptureState::Alive)
            .map(|info| Alive {
                info,
                load: 0,
                shunned: calm.shunned.contains(&info.id),
                settled: !calm.unsettled.contains(&info.id),
                pools: Vec::new(),
            })
            .collect();
        let mut by_label = HashMap::<_, Vec<_>>::new();
        for (place, capture) in captures.iter().enumerate() {
            for (key, value) in &capture.info.labels {
                by_label.entry((key.as_str(), value.as_str())).or_default().push(place);
            }
        }
        let by_id = captures.iter().enumerate().map(|(place, capture)| (capture.info.id, place)).collect();
        Self { captures, by_id, by_label, pools: Vec::new(), pool_of: HashMap::new(), everybody: None }
    }

    /// An alive capture's place.
    pub fn find(&self, id: CaptureId) -> Option<Place> {
        self.by_id.get(&id).copied()
    }

    pub fn id(&self, place: Place) -> CaptureId {
        self.captures[place].info.id
    }

    pub fn load(&self, place: Place) -> u64 {
        self.captures[place].load
    }

    /// Whether it flaps or is silent.
    pub fn is_shunned(&self, place: Place) -> bool {
        self.captures[place].shunned
    }

    /// Whether balance may empty or fill it.
    pub fn is_settled(&self, place: Place) -> bool {
        self.captures[place].settled
    }

    /// The captures that may run it.
    pub fn pool(&mut self, placement: &'a Placement) -> Pool {
        let asks_nothing = placement.affinity.is_empty();
        let known =
            if asks_nothing { self.everybody } else { self.pool_of.get(&placement.affinity).copied() };
        if let Some(pool) = known {
            return pool;
        }
        let members = self.admitted(placement);
        let pool = self.pools.len();
        let mut ordered = BTreeSet::new();
        for place in members {
            self.captures[place].pools.push(pool);
            ordered.insert(self.key(place));
        }
        self.pools.push(ordered);
        if asks_nothing {
            self.everybody = Some(pool);
        } else {
            self.pool_of.insert(&placement.affinity, pool);
        }
        pool
    }

    fn admitted(&self, placement: &Placement) -> Vec<Place> {
        // The rarest label first: what has not that one need not be looked at.
        let rarest = placement
            .affinity
            .iter()
            .map(|(key, value)| self.by_label.get(&(key.as_str(), value.as_str())).map_or(&[][..], |all| all))
            .min_by_key(|places| places.len());
        match rarest {
            None => (0..self.captures.len()).collect(),
            Some(places) => places
                .iter()
                .copied()
                .filter(|place| placement.admits(&self.captures[*place].info.labels))
                .collect(),
        }
    }

    fn key(&self, place: Place) -> (bool, u64, CaptureId, Place) {
        let capture = &self.captures[place];
        (capture.shunned, capture.load, capture.info.id, place)
    }

    /// How many captures there are in a pool.
    pub fn size(&self, pool: Pool) -> usize {
        self.pools[pool].len()
    }

    /// The one that has least; ties go to the lowest id, and one that flaps or is silent comes after all others.
    pub fn least(&self, pool: Pool) -> Option<Place> {
        self.pools[pool].first().map(|(.., place)| *place)
    }

    /// The one that has least of those that balance may fill.
    pub fn least_settled(&self, pool: Pool) -> Option<Place> {
        let settled = self.pools[pool].iter().filter(|(.., place)| self.captures[*place].settled);
        settled.min_by_key(|(_, load, id, _)| (*load, *id)).map(|(.., place)| *place)
    }

    /// Puts a weight on a capture.
    pub fn put(&mut self, place: Place, weight: u32) {
        self.set_load(place, self.captures[place].load.saturating_add(u64::from(weight)));
    }

    /// Takes a weight from a capture.
    pub fn take(&mut self, place: Place, weight: u32) {
        self.set_load(place, self.captures[place].load.saturating_sub(u64::from(weight)));
    }

    fn set_load(&mut self, place: Place, load: u64) {
        let before = self.key(place);
        self.captures[place].load = load;
        let after = self.key(place);
        for pool in &self.captures[place].pools {
            self.pools[*pool].remove(&before);
            self.pools[*pool].insert(after);
        }
    }
}
