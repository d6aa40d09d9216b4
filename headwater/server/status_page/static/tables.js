// Lists that change in place: rows keep their elements (and focus, and selection) while their text changes.
// Everything becomes text nodes; nothing here or elsewhere on the page makes markup from data.

export function set(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function make(name, classes = "", text = "") {
  const element = document.createElement(name);
  if (classes) element.className = classes;
  if (text) element.textContent = text;
  return element;
}

/** Children of `parent` by key, in the order of `items`; `create(item)` makes one, `update(element, item)` fills it. */
export function keyed(parent, items, key, create, update) {
  const old = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const name = String(key(item));
    let element = old.get(name);
    old.delete(name);
    if (!element) {
      element = create(item);
      element.dataset.key = name;
    }
    if (element === place) place = place.nextElementSibling;
    else parent.insertBefore(element, place);
    update(element, item);
  }
  for (const element of old.values()) element.remove();
}

/** A table's body. A column is {label, text(item), class?, pill?(item), classes?(item), title?(item)}; the first is the row's header. */
export function fill(table, columns, items, key, rowClass = () => "") {
  const create = () => {
    const row = make("tr");
    columns.forEach((column, i) => {
      const cell = make(i ? "td" : "th");
      if (!i) cell.scope = "row";
      cell.dataset.label = column.label;
      cell.append(column.button ? make("button") : make("span"));
      row.append(cell);
    });
    return row;
  };
  const update = (row, item) => {
    row.className = rowClass(item);
    columns.forEach((column, i) => {
      const cell = row.children[i];
      const inner = cell.firstElementChild;
      const text = column.text(item);
      cell.className = [column.class ?? "", column.classes?.(item) ?? "", text ? "" : "none"].join(" ").trim();
      if (column.pill) inner.className = `pill ${column.pill(item)}`;
      if (column.title) cell.title = column.title(item);
      if (column.button) column.button(inner, item);
      else set(inner, text);
    });
  };
  keyed(table.tBodies[0], items, key, create, update);
}

/** A definition list of [name, value, note?, class?]. */
export function facts(list, rows) {
  keyed(list, rows, (row) => row[0], () => {
    const box = make("div");
    const value = make("dd");
    value.append(make("span"), make("small"));
    box.append(make("dt"), value);
    return box;
  }, (box, [name, text, note = "", classes = ""]) => {
    box.className = classes;
    const [value, small] = box.lastElementChild.children;
    set(box.firstElementChild, name);
    set(value, text);
    set(small, note);
    small.hidden = !note;
  });
}
