//! The audits of a subscribing link: Redis' number of subscriptions is compared with the number that Redis confirmed.
//! Where Redis does not count, the answer only proves that the link works.
//!
//! If Redis has fewer, no answer names the missing ones. So the worker subscribes all channels again, on the same link,
//! which meanwhile delivers for the others. May not enter: how Redis is asked.

use super::channel_table::Count;
use super::error::LinkError;
use super::link_command::{Counting, LinkCommand};
use super::node_state::NodeState;
use super::subscribing_link::LinkState;
use crate::broker::event::Report;
use crate::throttle::Throttle;

/// Redis has `missing` fewer subscriptions than it confirmed; `None` where Redis does not count.
///
/// # Errors
/// When it still has fewer after all were subscribed again.
pub(super) fn on_count(
    state: &mut LinkState,
    node: &mut NodeState,
    counting: Counting,
    missing: Option<usize>,
) -> Result<(), LinkError> {
    let lacking = missing.unwrap_or_default();
    let asked_at = state.link().map(|link| link.proved_until);
    match (counting, &mut *state) {
        (Counting::First, LinkState::Subscribing(_, count)) => {
            // Right behind the confirmations, the number must be complete.
            *count = if missing == Some(0) { Count::Believed } else { Count::Unknown };
            tell_wrong_count(&node.terms.server, lacking);
        }
        (Counting::Again, _) if lacking > 0 => return Err(LinkError::Fewer(lacking)),
        (Counting::Audit, LinkState::Complete(_, audits) | LinkState::AtMarker(_, audits))
            if lacking > 0 && audits.count == Count::Believed =>
        {
            let server = &node.terms.server;
            tracing::warn!(
                missing = lacking,
                server,
                "{server} has {lacking} fewer subscriptions than it confirmed: webws subscribes all channels again"
            );
            node.lost(audits.complete_at);
            node.channels.lose_all();
            node.catch_up = None;
            node.events.push_back(Report::Lost { node: node.id, is_cut: false });
            state.plan_first([LinkCommand::Unconfirmed, LinkCommand::Count(Counting::Again)]);
        }
        _ => {
            if let LinkState::Complete(_, audits) | LinkState::AtMarker(_, audits) = state {
                audits.complete_at = asked_at.unwrap_or(audits.complete_at);
            }
            let look_again = node.health.is_subscription_refused().then(|| node.health.last_tried()).flatten();
            state.plan_first(look_again.map(LinkCommand::LookAgain).into_iter().chain([LinkCommand::EndAudit]));
        }
    }
    Ok(())
}

/// All answers of an audit were read, behind all publications before them.
pub(super) fn end(state: &mut LinkState, node: &mut NodeState) {
    if let LinkState::Complete(_, audits) | LinkState::AtMarker(_, audits) = state
        && node.probe.is_denied()
    {
        // Without a probe, only the count proves anything. It proves less: a deaf link answers.
        node.probe.proved(audits.complete_at);
    }
    if node.probe.is_lost() {
        // The slot of its channel may have moved, or Redis refused it for the moment.
        state.plan_first([LinkCommand::Probe, LinkCommand::BeginProbe]);
    }
}

/// Logs that the server's count of subscriptions is wrong.
fn tell_wrong_count(server: &str, missing: usize) {
    static WRONG: Throttle = Throttle::per_minute();
    if missing > 0 && WRONG.allows() {
        tracing::warn!(
            missing,
            server,
            "{server} counts {missing} fewer subscriptions than it has just confirmed (CLIENT INFO): webws does not use \
             the count on this link"
        );
    }
}
