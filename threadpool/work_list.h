// WorkList: a doubly linked list of work items, threaded through the items.
//
// The list does not own its items.  An item is in one list at most.
//
// Thread safety: none of its own; the owner guards each list with one lock.
// holder() alone may be called without that lock, for an item that is alive.
#ifndef SPINDLE_THREADPOOL_WORK_LIST_H_
#define SPINDLE_THREADPOOL_WORK_LIST_H_

#include <cstddef>

#include "threadpool/executor.h"
#include "threadpool/pool_check.h"

namespace spindle {

class WorkList {
 public:
  static constexpr size_t kNoTag = static_cast<size_t>(-1);

  // `tag` tells an owner of several lists which one holds an item.
  explicit WorkList(size_t tag = kNoTag) : tag_(tag) {}
  WorkList(const WorkList&) = delete;
  WorkList& operator=(const WorkList&) = delete;

  // The list that holds `item`, or null.  Without that list's lock the answer
  // may be out of date.
  static const WorkList* holder(const WorkItem* item) {
    return item->list_.load(std::memory_order_relaxed);
  }

  size_t tag() const { return tag_; }
  bool empty() const { return size_ == 0; }
  size_t size() const { return size_; }
  WorkItem* front() const { return first_; }
  static WorkItem* after(const WorkItem* item) { return item->next_; }

  // REQUIRES: `item` is in no list.
  void push_back(WorkItem* item) { insert_between(item, last_, nullptr); }
  void push_front(WorkItem* item) { insert_between(item, nullptr, first_); }

  // REQUIRES: holder(item) == this.
  void remove(WorkItem* item) {
    pool_check(holder(item) == this, "work item is not in this list");
    (item->previous_ == nullptr ? first_ : item->previous_->next_) =
        item->next_;
    (item->next_ == nullptr ? last_ : item->next_->previous_) = item->previous_;
    item->previous_ = item->next_ = nullptr;
    item->list_.store(nullptr, std::memory_order_relaxed);
    --size_;
  }

  // Null if the list is empty.
  WorkItem* pop_front() {
    WorkItem* item = first_;
    if (item != nullptr) remove(item);
    return item;
  }

  WorkItem* pop_back() {
    WorkItem* item = last_;
    if (item != nullptr) remove(item);
    return item;
  }

 private:
  void insert_between(WorkItem* item, WorkItem* previous, WorkItem* next) {
    pool_check(holder(item) == nullptr, "work item is queued already");
    item->previous_ = previous;
    item->next_ = next;
    (previous == nullptr ? first_ : previous->next_) = item;
    (next == nullptr ? last_ : next->previous_) = item;
    item->list_.store(this, std::memory_order_relaxed);
    ++size_;
  }

  const size_t tag_;
  WorkItem* first_ = nullptr;
  WorkItem* last_ = nullptr;
  size_t size_ = 0;
};

}  // namespace spindle

#endif  // SPINDLE_THREADPOOL_WORK_LIST_H_
