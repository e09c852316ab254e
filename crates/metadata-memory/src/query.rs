//! Plain reads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use metadata_api::model::{
    CaptureId, CaptureInfo, ChangefeedInfo, ChangefeedName, ChangefeedOverview, ChangefeedProgress,
    ChangefeedSchedule, ChangefeedStatus, ChangefeedUuid, ClusterIdentity, ElectionRecord, Name,
    ProcessorSchedule, ProcessorStatus, UpstreamId, UpstreamInfo,
};
use metadata_api::store::QueryStore;
use metadata_api::{MetadataError, Result};

use crate::MemoryStore;
use crate::tables::{InfoRow, Table, Tables};

#[async_trait]
impl QueryStore for MemoryStore {
    async fn identity(&self) -> Result<ClusterIdentity> {
        self.read("query.identity", |tables| Ok(tables.identity.clone())).await
    }

    async fn election(&self) -> Result<ElectionRecord> {
        self.read("query.election", Tables::election).await
    }

    async fn captures(&self, which: Option<&[CaptureId]>) -> Result<Vec<CaptureInfo>> {
        self.read("query.captures", |tables| {
            let rows = some(&tables.captures, which);
            rows.map(|row| tables.readable(Table::Capture, &row.id).map(|()| row.clone())).collect()
        })
        .await
    }

    async fn upstream(&self, id: UpstreamId) -> Result<Option<UpstreamInfo>> {
        self.read("query.upstream", |tables| Ok(tables.upstreams.get(&id).map(|row| (**row).clone()))).await
    }

    async fn changefeed_infos(&self, which: Option<&[ChangefeedUuid]>) -> Result<Vec<ChangefeedInfo>> {
        self.read("query.infos", |tables| {
            Ok(some(&tables.infos, which).map(|row| row.info.clone()).collect())
        })
        .await
    }

    async fn changefeed_statuses(&self, which: Option<&[ChangefeedUuid]>) -> Result<Vec<ChangefeedStatus>> {
        self.read("query.statuses", |tables| {
            let rows = some(&tables.statuses, which);
            rows.map(|row| tables.readable(Table::ChangefeedState, &row.changefeed).map(|()| row.clone()))
                .collect()
        })
        .await
    }

    async fn changefeed_progresses(
        &self,
        which: Option<&[ChangefeedUuid]>,
    ) -> Result<BTreeMap<ChangefeedUuid, ChangefeedProgress>> {
        self.read("query.progresses", |tables| {
            some(&tables.schedules, which).map(|row| Ok((row.changefeed, progress(tables, row)?))).collect()
        })
        .await
    }

    async fn changefeed_schedule(&self, changefeed: ChangefeedUuid) -> Result<Option<ChangefeedSchedule>> {
        self.read("query.schedule", |tables| {
            let row = tables.schedule(changefeed);
            row.map(|row| tables.readable(Table::Schedule, &row.changefeed).map(|()| row.clone())).transpose()
        })
        .await
    }

    async fn processor_schedules(&self, changefeed: ChangefeedUuid) -> Result<Vec<ProcessorSchedule>> {
        self.read("query.processor_schedules", |tables| Ok(processors(tables, changefeed).cloned().collect()))
            .await
    }

    async fn processors(&self, which: Option<&[ChangefeedUuid]>) -> Result<Vec<ProcessorStatus>> {
        self.read("query.processors", |tables| {
            let status = |row| processor_status(tables, row);
            let Some(which) = which else {
                return tables.processors.values().map(|row| status(row)).collect();
            };
            let which: BTreeSet<_> = which.iter().copied().collect();
            which.into_iter().flat_map(|changefeed| processors(tables, changefeed)).map(status).collect()
        })
        .await
    }

    async fn changefeed_overview(&self, name: &ChangefeedName) -> Result<Option<ChangefeedOverview>> {
        self.read("query.overview", |tables| {
            let found = tables.infos.values().find(|row| !row.name_freed && row.info.name == *name);
            found.map(|row| overview(tables, row)).transpose()
        })
        .await
    }

    async fn changefeed_overviews(&self, namespace: Option<&Name>) -> Result<Vec<ChangefeedOverview>> {
        self.read("query.overviews", |tables| {
            let mut rows: Vec<&Arc<InfoRow>> = tables
                .infos
                .values()
                .filter(|row| !row.name_freed)
                .filter(|row| namespace.is_none_or(|namespace| row.info.name.namespace == *namespace))
                .collect();
            rows.sort_by_key(|row| &row.info.name);
            rows.into_iter().map(|row| overview(tables, row)).collect()
        })
        .await
    }
}

/// Some rows, each once, or all; ordered by key. What does not exist is left out.
fn some<'a, K: Ord, V>(
    table: &'a BTreeMap<K, Arc<V>>,
    which: Option<&[K]>,
) -> Box<dyn Iterator<Item = &'a V> + 'a> {
    match which {
        None => Box::new(table.values().map(|row| &**row)),
        Some(keys) => {
            let rows: BTreeMap<&K, &Arc<V>> =
                keys.iter().filter_map(|key| table.get_key_value(key)).collect();
            Box::new(rows.into_values().map(|row| &**row))
        }
    }
}

/// A changefeed's processor rows, ordered by capture id.
pub(crate) fn processors(
    tables: &Tables,
    changefeed: ChangefeedUuid,
) -> impl Iterator<Item = &ProcessorSchedule> {
    // Ids are random and all of 128 bits, so the range has both ends in it.
    let (first, last) = (uuid::Uuid::nil(), uuid::Uuid::max());
    let range = (changefeed, CaptureId(first))..=(changefeed, CaptureId(last));
    tables.processors.range(range).map(|(_, row)| &**row)
}

/// A processor, with what its capture says under the row's epoch. A progress that cannot be read says nothing.
fn processor_status(tables: &Tables, row: &ProcessorSchedule) -> Result<ProcessorStatus> {
    tables.readable_processors(row.changefeed)?;
    let capture = row.capture;
    let state = tables.captures.get(&capture).map(|info| info.state);
    if state.is_some() {
        tables.readable(Table::Capture, &capture)?;
    }
    let progress = tables.progresses.get(&capture);
    let progress = progress.filter(|_| tables.readable(Table::Progress, &capture).is_ok());
    let report = progress.and_then(|progress| progress.value.0.get(&row.changefeed)?.processor.clone());
    let report = report.filter(|report| report.epoch == row.epoch);
    Ok(ProcessorStatus { schedule: row.clone(), capture: state, report })
}

fn progress(tables: &Tables, schedule: &ChangefeedSchedule) -> Result<ChangefeedProgress> {
    if let Some(owner) = schedule.owner {
        tables.readable(Table::Progress, &owner)?;
    }
    Ok(tables.progress_of(schedule))
}

/// All of one changefeed.
pub(crate) fn overview(tables: &Tables, row: &InfoRow) -> Result<ChangefeedOverview> {
    let uuid = row.info.uuid;
    let gone = |table: Table| {
        MetadataError::corrupt(table.name(), uuid, "changefeed_uuid", "the changefeed's row is gone")
    };
    let upstream = tables.upstreams.get(&row.info.upstream).ok_or_else(|| gone(Table::Upstream))?;
    let status = tables.status(uuid).ok_or_else(|| gone(Table::ChangefeedState))?;
    tables.readable(Table::ChangefeedInfo, &uuid)?;
    tables.readable(Table::ChangefeedState, &uuid)?;
    tables.readable(Table::Schedule, &uuid)?;
    let schedule = tables.schedule(uuid).ok_or_else(|| gone(Table::Schedule))?;
    Ok(ChangefeedOverview {
        info: row.info.clone(),
        upstream: (**upstream).clone(),
        status: status.clone(),
        schedule: schedule.clone(),
        progress: progress(tables, schedule)?,
    })
}
