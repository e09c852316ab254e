//! Creating changefeeds, each with its upstream: one, or all that wait.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use metadata_api::codec::{check_changefeed, encode_config, encode_position, split_uri};
use metadata_api::model::{
    ChangefeedInfo, ChangefeedName, ChangefeedUuid, NewChangefeed, Revision, UpstreamId,
};
use metadata_api::store::Authority;
use metadata_api::{MetadataError, Result};
use sqlx::FromRow;
use uuid::Uuid;

use crate::admin::{is_shared, write_upstream};
use crate::fence::fence_lock_taking;
use crate::group::{Call, Key};
use crate::query::upstream_row;
use crate::retry::{TxError, TxResult};
use crate::rows::{INFO, InfoRow};
use crate::sql::{Answer, Sql};
use crate::tx::Tx;

/// A request to create a changefeed, and what is stored of it.
pub(crate) struct Create {
    authority: Authority,
    new: NewChangefeed,
    config: String,
    position: String,
    endpoints: String,
    credentials: String,
}

impl Create {
    /// Checks what needs no database.
    pub(crate) fn new(authority: Authority, new: &NewChangefeed) -> Result<Self> {
        check_changefeed(new)?;
        let (endpoints, credentials) = split_uri("upstream_uri", &new.upstream_uri)?;
        Ok(Self {
            authority,
            config: encode_config(&new.config)?,
            position: encode_position("task_position", &new.task_position)?,
            endpoints,
            credentials,
            new: new.clone(),
        })
    }
}

impl Call for Create {
    type Answer = ChangefeedInfo;

    fn keys(&self) -> Vec<Key> {
        vec![Key::Name(self.new.name.to_string()), Key::Request(self.new.client_request_id)]
    }

    fn may_join(&self, first: &Self) -> bool {
        // Who names an upstream goes alone: another's row may have to be read, and written, in between.
        let own_upstreams = self.new.upstream_id.is_none() && first.new.upstream_id.is_none();
        self.authority == first.authority && own_upstreams
    }

    fn text(&self) -> usize {
        let texts = [&self.config, &self.position, &self.endpoints, &self.credentials];
        texts.iter().map(|text| text.len()).sum::<usize>() + self.new.sink_uri.expose().len()
    }
}

/// A changefeed that a request meets: made by that very request, or the holder of its name.
#[derive(FromRow)]
struct RivalRow {
    #[sqlx(flatten)]
    info: InfoRow,
    holds_name: i64,
}

/// Asks whom they meet.
fn read_rivals(creates: &[Arc<Create>]) -> Sql {
    let mut sql = Sql::new("SELECT ");
    sql.push(INFO).push(", 0 AS holds_name FROM changefeed_info i WHERE i.client_request_id IN (");
    sql.uuids(creates.iter().map(|create| create.new.client_request_id));
    sql.push(") UNION ALL SELECT ").push(INFO);
    sql.push(", 1 AS holds_name FROM changefeed_info i WHERE i.removed_marker = 0 AND (");
    for (n, create) in creates.iter().enumerate() {
        sql.push(if n == 0 { "" } else { " OR " });
        sql.push("i.namespace = ").text(create.new.name.namespace.as_str());
        sql.push(" AND i.id = ").text(create.new.name.id.as_str());
    }
    sql.push(")");
    sql
}

/// Whom requests meet.
#[derive(Default)]
struct Rivals {
    by_request: HashMap<Uuid, ChangefeedInfo>,
    names: HashSet<ChangefeedName>,
}

impl Rivals {
    fn of(answer: &Answer) -> TxResult<Self> {
        let mut rivals = Self::default();
        for row in answer.rows::<RivalRow>()? {
            let info = ChangefeedInfo::try_from(row.info)?;
            if row.holds_name == 1 {
                rivals.names.insert(info.name);
            } else {
                rivals.by_request.insert(info.client_request_id, info);
            }
        }
        Ok(rivals)
    }

    /// What this request made before, or why it is refused; `None` when nothing stands in its way.
    fn answer(&self, new: &NewChangefeed) -> Option<Result<ChangefeedInfo>> {
        if let Some(made) = self.by_request.get(&new.client_request_id) {
            return Some(Ok(made.clone()));
        }
        let taken = self.names.contains(&new.name);
        taken.then(|| Err(MetadataError::already_exists(format!("changefeed {}", new.name))))
    }
}

/// The upstream's key, and whether its row is still to be written.
async fn choose_upstream(
    tx: &mut Tx<'_>,
    uuid: ChangefeedUuid,
    create: &Create,
) -> TxResult<(UpstreamId, bool)> {
    // A fresh one; should somebody have named this very number, the insert fails, and the clock's next gives another.
    let Some(id) = create.new.upstream_id else { return Ok((UpstreamId(uuid.0), true)) };
    match upstream_row(tx, id).await? {
        None => Ok((id, true)),
        Some(row) if row.uri == create.new.upstream_uri => Ok((id, false)),
        Some(_) if !is_shared(tx, id, ChangefeedUuid(0)).await? => {
            write_upstream(tx, id, &create.endpoints, &create.credentials).await?;
            Ok((id, false))
        }
        Some(_) => Err(MetadataError::invalid(
            "upstream_id",
            format!("upstream {id} has another URI, and other changefeeds use it"),
        )
        .into()),
    }
}

/// What is inserted for one changefeed.
struct Inserted<'a> {
    uuid: u64,
    upstream: UpstreamId,
    upstream_is_new: bool,
    create: &'a Create,
}

/// All of it in one round trip, under the fence: an `INSERT` a table, and the rows as they are then.
fn inserts(revision: Revision, rows: &[Inserted<'_>]) -> Sql {
    let mut sql = Sql::new("");
    if rows.iter().any(|row| row.upstream_is_new) {
        sql.push("INSERT INTO upstream (id, endpoints, credentials) VALUES ");
        sql.list(rows.iter().filter(|row| row.upstream_is_new), |sql, row| {
            sql.push("(").number(row.upstream.0).push(", ").text(&row.create.endpoints);
            sql.push(", ").text(&row.create.credentials).push(")")
        });
        sql.push("; ");
    }
    sql.push("INSERT INTO schedule (changefeed_uuid, owner_state, task_position, revision) VALUES ");
    sql.list(rows, |sql, row| {
        sql.push("(").number(row.uuid).push(", 'removed', ").text(&row.create.position);
        sql.push(", ").number(revision.0).push(")")
    });
    sql.push(
        "; INSERT INTO changefeed_info (uuid, namespace, id, upstream_id, sink_uri, start_ts, target_ts, config, \
         creator_version, client_request_id) VALUES ",
    );
    sql.list(rows, |sql, row| {
        let new = &row.create.new;
        sql.push("(").number(row.uuid).push(", ").text(new.name.namespace.as_str());
        sql.push(", ").text(new.name.id.as_str()).push(", ").number(row.upstream.0);
        sql.push(", ").text(new.sink_uri.expose()).push(", ").number(new.start_ts.0);
        sql.push(", ").number(new.target_ts.0).push(", ").text(&row.create.config);
        sql.push(", ").text(&new.creator_version).push(", ").uuid(new.client_request_id).push(")")
    });
    sql.push("; INSERT INTO changefeed_state (changefeed_uuid, state) VALUES ");
    sql.list(rows, |sql, row| sql.push("(").number(row.uuid).push(", '')"));
    sql.push("; SELECT ").push(INFO).push(" FROM changefeed_info i WHERE i.uuid IN (");
    sql.numbers(rows.iter().map(|row| row.uuid)).push(")");
    sql
}

/// Creates them, each for itself: one that is refused keeps no other from being made.
pub(crate) async fn create(
    tx: &mut Tx<'_>,
    creates: &[Arc<Create>],
) -> TxResult<Vec<Result<ChangefeedInfo>>> {
    let Some(first) = creates.first() else { return Ok(Vec::new()) };
    // Each gets a revision as its uuid.
    let count = creates.len() as u64;
    let (revision, [rivals]) = fence_lock_taking(tx, first.authority, count, [read_rivals(creates)]).await?;
    let rivals = Rivals::of(&rivals)?;
    let met: Vec<_> = creates.iter().map(|create| rivals.answer(&create.new)).collect();
    let mut rows = Vec::with_capacity(creates.len());
    for ((create, met), uuid) in creates.iter().zip(&met).zip(revision.0 + 1 - count..) {
        if met.is_none() {
            let (upstream, upstream_is_new) = choose_upstream(tx, ChangefeedUuid(uuid), create).await?;
            rows.push(Inserted { uuid, upstream, upstream_is_new, create });
        }
    }
    let mut made: HashMap<Uuid, ChangefeedInfo> = HashMap::new();
    if rows.is_empty() {
        tx.discard();
    } else {
        for row in inserts(revision, &rows).fetch::<InfoRow>(tx).await? {
            let info = ChangefeedInfo::try_from(row)?;
            made.insert(info.client_request_id, info);
        }
    }
    let answer = |(create, met): (&Arc<Create>, Option<Result<ChangefeedInfo>>)| match met {
        Some(answer) => Ok(answer),
        None => Ok(Ok(made.remove(&create.new.client_request_id).ok_or(TxError::Moved("a changefeed"))?)),
    };
    creates.iter().zip(met).map(answer).collect()
}
