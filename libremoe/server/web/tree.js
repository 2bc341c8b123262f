// One conversation: a tree of turns, of which one path is shown.

export class Tree {
  constructor({ conversation, turns, leaf_id }) {
    this.conversation = conversation;
    this.turns = new Map(turns.map((turn) => [turn.id, turn]));
    this.leaf = leaf_id ?? conversation.leaf_id ?? null;
  }

  get id() { return this.conversation.id; }

  /** A new turn, or a newer version of one: what the server did not send again stays. */
  put(turn) {
    const before = this.turns.get(turn.id);
    if (before && !turn.html && turn.state === "writing") turn.html = before.html;
    this.turns.set(turn.id, turn);
    return turn;
  }

  /** From the first turn to the selected one. */
  path() {
    const path = [];
    for (let turn = this.turns.get(this.leaf); turn && path.length <= this.turns.size; turn = this.turns.get(turn.parent_id)) path.push(turn);
    return path.reverse();
  }

  /** The turns that answer the same turn, oldest first; turn is one of them. */
  versions(turn) {
    return [...this.turns.values()].filter((one) => one.parent_id === turn.parent_id && one.role === turn.role)
      .sort((a, b) => a.created - b.created);
  }

  /** The newest leaf below a turn. */
  end(turn) {
    let found = turn;
    for (;;) {
      const below = [...this.turns.values()].filter((one) => one.parent_id === found.id);
      if (!below.length) return found;
      found = below.reduce((a, b) => (b.created >= a.created ? b : a));
    }
  }

  last(role) { return this.path().findLast((turn) => turn.role === role); }
}

/** What a turn says, without calls and what tools brought. */
export const textOf = (turn) => turn.parts.filter((part) => part.type === "text").map((part) => part.text).join("");
